// What the theme's own script adds to a page, made usable from the keyboard and by screen readers.
function mend() {
  document.querySelectorAll(".md-typeset__scrollwrap").forEach((table) => (table.tabIndex = 0)); // wide tables scroll
  // These are no places of their own to go to.
  document.querySelectorAll(".md-code__nav, .md-nav--secondary .md-nav").forEach((nav) => {
    nav.setAttribute("role", "none");
    nav.removeAttribute("aria-label");
  });
  document.querySelector(".md-path")?.setAttribute("aria-label", "Path");
}
mend();
new MutationObserver(mend).observe(document.body, { childList: true, subtree: true });
