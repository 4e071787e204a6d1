// The part of TensorRT's builder that asks a quick plugin for its kernels, on a CPU. It goes through the real plugin
// registry and TensorRT's C++ interfaces, so that NVIDIA's trampolines and Python front-end run as in an engine build.
// Needs TensorRT's headers (Apache-2.0, github.com/NVIDIA/TensorRT, folder include) and CUDA's.
#include <cstring>
#include <deque>
#include <functional>
#include <sstream>
#include <string>
#include <vector>

#include "NvInfer.h"
#include "impl/NvInferPythonPlugin.h"

using namespace nvinfer1;

namespace {

// --- symbolic sizes: an expression is a function of the run-time sizes, or a constant ---

struct Expression : IDimensionExpr, apiv::VDimensionExpr {
  Expression(std::function<int64_t()> evaluate, bool constant) : evaluate(std::move(evaluate)), constant(constant) {
    mImpl = this;
  }
  ~Expression() noexcept override = default;
  bool isConstant() const override { return constant; }
  int64_t getConstantValue() const override { return constant ? evaluate() : INT64_MIN; }
  bool isSizeTensor() const override { return false; }
  std::function<int64_t()> evaluate;
  bool constant;
};

std::deque<Expression> expressions;  // they live as long as the process

Expression const* expression(std::function<int64_t()> evaluate, bool constant) {
  return &expressions.emplace_back(std::move(evaluate), constant);
}
int64_t value(IDimensionExpr const* e) { return static_cast<Expression const*>(e)->evaluate(); }
int64_t value(ISymExpr* e) { return value(static_cast<IDimensionExpr const*>(e->getExpr())); }

int64_t apply(DimensionOperation operation, int64_t a, int64_t b) {
  switch (operation) {
    case DimensionOperation::kSUM: return a + b;
    case DimensionOperation::kSUB: return a - b;
    case DimensionOperation::kPROD: return a * b;
    case DimensionOperation::kMAX: return a > b ? a : b;
    case DimensionOperation::kMIN: return a < b ? a : b;
    case DimensionOperation::kEQUAL: return a == b;
    case DimensionOperation::kLESS: return a < b;
    case DimensionOperation::kFLOOR_DIV: return a / b;
    case DimensionOperation::kCEIL_DIV: return (a + b - 1) / b;
  }
  return INT64_MIN;
}

struct ExpressionBuilder : IExprBuilder, apiv::VExprBuilder {
  ExpressionBuilder() { mImpl = this; }
  ~ExpressionBuilder() noexcept override = default;
  IDimensionExpr const* constant(int64_t v) override {
    return expression([v] { return v; }, true);
  }
  IDimensionExpr const* operation(DimensionOperation op, IDimensionExpr const& a, IDimensionExpr const& b) override {
    bool const constant = static_cast<Expression const&>(a).constant && static_cast<Expression const&>(b).constant;
    return expression([op, &a, &b] { return apply(op, value(&a), value(&b)); }, constant);
  }
  IDimensionExpr const* declareSizeTensor(int32_t, IDimensionExpr const&, IDimensionExpr const&) override {
    return nullptr;
  }
};

// --- what the plugin fills in ---

struct Dimensions : IKernelLaunchParams, IKernelLaunchParamsImpl {
  Dimensions() { mImpl = this; }
  ~Dimensions() noexcept override = default;
#define DIMENSION(NAME, INDEX)                                       \
  ISymExpr* get##NAME() noexcept override { return at[INDEX]; }      \
  bool set##NAME(ISymExpr* e) noexcept override { return at[INDEX] = e, true; }
  DIMENSION(GridX, 0)
  DIMENSION(GridY, 1)
  DIMENSION(GridZ, 2)
  DIMENSION(BlockX, 3)
  DIMENSION(BlockY, 4)
  DIMENSION(BlockZ, 5)
  DIMENSION(SharedMem, 6)
  ISymExpr* at[7]{};
};

struct Scalars : ISymExprs, ISymExprsImpl {
  Scalars() { mImpl = this; }
  ~Scalars() noexcept override = default;
  ISymExpr* getSymExpr(int32_t i) const noexcept override { return at[i]; }
  bool setSymExpr(int32_t i, ISymExpr* e) noexcept override { return at[i] = e, true; }
  int32_t getNbSymExprs() const noexcept override { return static_cast<int32_t>(at.size()); }
  bool setNbSymExprs(int32_t count) noexcept override { return at.resize(count), true; }
  std::vector<ISymExpr*> at;
};

template <typename Items, typename Function>
std::string list(Items const& items, Function text) {
  std::ostringstream out;
  for (auto const& item : items) out << (out.tellp() > 0 ? "," : "") << text(item);
  return "[" + out.str() + "]";
}

std::string failure(char const* step) { return std::string("{\"error\":\"") + step + "\"}"; }

// One (types, formats, tactic): the kernel that an engine would hold.
std::string kernel(IPluginV3QuickAOTBuild& plugin, DimsExprs const* inputs, std::vector<DynamicPluginTensorDesc>& tensors,
                   int nbInputs, int tactic, ExpressionBuilder& builder) {
  int const nbOutputs = static_cast<int>(tensors.size()) - nbInputs;
  plugin.setTactic(tactic);
  Dimensions dimensions;
  Scalars scalars;
  if (plugin.getLaunchParams(inputs, tensors.data(), nbInputs, nbOutputs, &dimensions, &scalars, builder))
    return failure("getLaunchParams");
  std::vector<PluginTensorDesc> descs;
  for (auto const& tensor : tensors) descs.push_back(tensor.desc);
  char const* name = nullptr;
  char* code = nullptr;
  int32_t bytes = 0;
  if (plugin.getKernel(descs.data(), nbInputs, descs.data() + nbInputs, nbOutputs, &name, &code, &bytes))
    return failure("getKernel");
  std::ostringstream out;
  out << "{\"tactic\":" << tactic
      << ",\"formats\":" << list(descs, [](PluginTensorDesc const& d) { return static_cast<int>(d.format); })
      << ",\"kernel\":\"" << name << "\",\"code\":" << reinterpret_cast<uintptr_t>(code) << ",\"bytes\":" << bytes
      << ",\"launch\":" << list(dimensions.at, [](ISymExpr* e) { return e ? value(e) : -1; })
      << ",\"scalars\":" << list(scalars.at, [](ISymExpr* e) { return value(e); })
      << ",\"scalar_types\":" << list(scalars.at, [](ISymExpr* e) { return static_cast<int>(e->getDataType()); }) << "}";
  return out.str();
}

std::string build(char const* name, char const* space, int nbFields, char const** fieldNames, int32_t const* fields,
                  int nbInputs, int32_t const* types, int32_t const* ranks, int64_t const* sizes) {
  auto* creator = static_cast<IPluginCreatorV3Quick*>(getPluginRegistry()->getCreator(name, "1", space));
  if (!creator) return failure("getCreator");
  std::vector<PluginField> list_of_fields;
  for (int i = 0; i < nbFields; ++i)
    list_of_fields.emplace_back(fieldNames[i], &fields[i], PluginFieldType::kINT32, 1);
  PluginFieldCollection collection{nbFields, list_of_fields.data()};
  auto* whole = creator->createPlugin(name, space, &collection, TensorRTPhase::kBUILD,
                                      QuickPluginCreationRequest::kSTRICT_AOT);
  if (!whole) return failure("createPlugin");
  auto& plugin = *static_cast<IPluginV3QuickAOTBuild*>(whole->getCapabilityInterface(PluginCapabilityType::kBUILD));
  if (std::string(plugin.getInterfaceInfo().kind) != "PLUGIN_V3QUICKAOT_BUILD") return failure("no AOT plugin");

  int const nbOutputs = plugin.getNbOutputs(), count = nbInputs + nbOutputs;
  std::vector<DataType> dataTypes(count);
  for (int i = 0; i < nbInputs; ++i) dataTypes[i] = static_cast<DataType>(types[i]);
  if (plugin.getOutputDataTypes(&dataTypes[nbInputs], nbOutputs, dataTypes.data(), ranks, nbInputs))
    return failure("getOutputDataTypes");

  // Batch, height and width are symbols, channels are known: as in an engine with dynamic shapes.
  std::vector<DimsExprs> dims(count);
  for (int i = 0; i < nbInputs; ++i) {
    dims[i].nbDims = ranks[i];
    for (int j = 0; j < ranks[i]; ++j) {
      int64_t const size = *sizes++;
      dims[i].d[j] = expression([size] { return size; }, ranks[i] == 4 && j == 1);
    }
  }
  ExpressionBuilder builder;
  if (plugin.getOutputShapes(dims.data(), nbInputs, nullptr, 0, &dims[nbInputs], nbOutputs, builder))
    return failure("getOutputShapes");

  std::vector<DynamicPluginTensorDesc> tensors(count);
  for (int i = 0; i < count; ++i) {
    auto& tensor = tensors[i];
    std::memset(&tensor, 0, sizeof tensor);
    tensor.desc.type = dataTypes[i];
    tensor.desc.format = TensorFormat::kLINEAR;
    tensor.desc.dims.nbDims = tensor.min.nbDims = tensor.opt.nbDims = tensor.max.nbDims = dims[i].nbDims;
    for (int j = 0; j < dims[i].nbDims; ++j) {
      int64_t const size = value(dims[i].d[j]);
      tensor.desc.dims.d[j] = dims[i].d[j]->isConstant() ? size : -1;
      tensor.min.d[j] = tensor.opt.d[j] = tensor.max.d[j] = size;
    }
  }
  int const nbCombinations = plugin.getNbSupportedFormatCombinations(tensors.data(), nbInputs, nbOutputs);
  std::vector<PluginTensorDesc> combinations(nbCombinations * count);
  if (plugin.getSupportedFormatCombinations(tensors.data(), nbInputs, nbOutputs, combinations.data(), nbCombinations))
    return failure("getSupportedFormatCombinations");

  std::vector<std::string> kernels;
  for (int k = 0; k < nbCombinations; ++k) {
    bool fits = true;  // a strongly typed network keeps its types
    for (int i = 0; i < count; ++i) {
      fits = fits && combinations[k * count + i].type == dataTypes[i];
      tensors[i].desc.format = combinations[k * count + i].format;
    }
    if (!fits) continue;
    if (plugin.configurePlugin(tensors.data(), nbInputs, &tensors[nbInputs], nbOutputs)) return failure("configurePlugin");
    std::vector<int32_t> tactics(plugin.getNbTactics());
    if (!tactics.empty()) plugin.getValidTactics(tactics.data(), static_cast<int>(tactics.size()));
    if (tactics.empty()) tactics.push_back(0);
    for (int tactic : tactics) kernels.push_back(kernel(plugin, dims.data(), tensors, nbInputs, tactic, builder));
  }
  std::ostringstream out;
  out << "{\"output_type\":" << static_cast<int>(dataTypes[nbInputs]) << ",\"output_shape\":[";
  for (int j = 0; j < dims[nbInputs].nbDims; ++j) out << (j ? "," : "") << value(dims[nbInputs].d[j]);
  out << "],\"kernels\":" << list(kernels, [](std::string const& text) { return text; }) << "}";
  return out.str();
}

}  // namespace

// Returns JSON. `sizes` holds the inputs' shapes one after another.
extern "C" char const* build_plugin(char const* name, char const* space, int nbFields, char const** fieldNames,
                                    int32_t const* fields, int nbInputs, int32_t const* types, int32_t const* ranks,
                                    int64_t const* sizes) {
  static std::string result;
  result = build(name, space, nbFields, fieldNames, fields, nbInputs, types, ranks, sizes);
  return result.c_str();
}
