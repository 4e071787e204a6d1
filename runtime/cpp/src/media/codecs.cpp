#include "media/codecs.hpp"

#ifdef DENSEPORT_CODECS
#include <dlfcn.h>
#endif

#include "denseport/denseport.hpp"

namespace denseport {

#ifdef DENSEPORT_CODECS  // the library's file name; it lies beside this one

namespace {

const Codecs* load() {
    void* library = dlopen(DENSEPORT_CODECS, RTLD_LAZY | RTLD_LOCAL);
    void* found = library ? dlsym(library, "denseport_codecs") : nullptr;
    if (!found)
        throw MachineError(
            std::string("image files cannot be read or written: ") + dlerror(),
            std::string("Install ") + DENSEPORT_CODECS + " beside libdenseport.so, or give images as cv::Mat.");
    return reinterpret_cast<decltype(&denseport_codecs)>(found)();
}

}  // namespace

const Codecs& codecs() {
    static const Codecs* found = load();
    return *found;
}

#else

const Codecs& codecs() { return *denseport_codecs(); }

#endif

}  // namespace denseport
