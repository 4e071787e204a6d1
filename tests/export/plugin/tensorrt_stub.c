/* Stands in for libnvinfer, libnvonnxparser and libnvinfer_plugin, which no package index has, so that NVIDIA's Python
 * bindings (tensorrt-cu13-bindings) load on a machine without them. The plugin registry is the real one, of the lean
 * runtime (tensorrt-lean-cu13-libs, at TENSORRT_LEAN_LIBRARY); a builder, a parser or an engine is not to be had. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdlib.h>

#define ABSENT(NAME) void *NAME(void) { return 0; }
ABSENT(createInferBuilder_INTERNAL)
ABSENT(createInferRefitter_INTERNAL)
ABSENT(createInferRuntime_INTERNAL)
ABSENT(createNvOnnxParser_INTERNAL)
ABSENT(createNvOnnxParserRefitter_INTERNAL)
ABSENT(getBuilderPluginRegistry)
int getNvOnnxParserVersion(void) { return 0; }
char initLibNvInferPlugins(void) { return 1; }

void *getPluginRegistry(void) {
  void *lean = dlopen(getenv("TENSORRT_LEAN_LIBRARY"), RTLD_NOW | RTLD_LOCAL);
  void *(*real)(void) = lean ? (void *(*)(void))dlsym(lean, "getPluginRegistry") : 0;
  return real ? real() : 0;
}
