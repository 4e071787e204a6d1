// What the theme's own script adds to a page, made usable from the keyboard and by screen readers.
new MutationObserver(() => {
  document.querySelectorAll(".md-typeset__scrollwrap").forEach((table) => (table.tabIndex = 0)); // wide tables scroll
  document.querySelectorAll(".md-code__nav, .md-nav--secondary .md-nav").forEach((nav) => nav.setAttribute("role", "none")); // no places of their own
  document.querySelector(".md-path")?.setAttribute("aria-label", "Path");
}).observe(document.body, { childList: true, subtree: true });
