// The operations of a TorchScript file: the graph of its forward with all calls inlined, as JSON.

#include "guarded.h"
#include "json.h"

#include <torch/csrc/jit/ir/ir.h>
#include <torch/csrc/jit/passes/inliner.h>
#include <torch/csrc/jit/serialization/import.h>
#include <torch/types.h>

#include <algorithm>
#include <sstream>
#include <string>
#include <unordered_map>
#include <unordered_set>

namespace {

using at::Tensor;
using torch::jit::Node;

template <typename Values>
void write_ids(std::ostringstream& out, Values values) {
    out << "[";
    for (size_t i = 0; i < values.size(); i++) out << (i ? "," : "") << values[i]->unique();
    out << "]";
}

// Returns whether the output of an operation is the same for all images: constants, attributes, and
// the precision and device of the images.
bool is_known(torch::jit::NodeKind kind) {
    using namespace torch::jit;
    return kind == prim::Constant || kind == prim::GetAttr || kind == prim::dtype || kind == prim::device;
}

// Maximum number of elements of a computed constant.
constexpr int64_t kMostElements = 1 << 24;

// Returns whether the outputs of a node are the same for all images, because its inputs are.
bool is_fixed(const Node* node, const std::unordered_set<size_t>& fixed) {
    if (is_known(node->kind())) return true;
    const auto* schema = node->maybeSchema();
    const bool random = schema && node->isNondeterministic();
    // Of the other tensor, which may be of the images, only the element type is read.
    if (node->kind() == c10::aten::type_as) return fixed.count(node->input(0)->unique()) > 0;
    return !random && std::all_of(node->inputs().begin(), node->inputs().end(), [&](const auto* input) {
        return fixed.count(input->unique()) > 0;
    });
}

// Returns whether the result of an operation is a tensor, or a list of tensors, that is the same for
// all images.
bool is_computed(
    const Node* node, const std::unordered_set<size_t>& fixed, const std::unordered_map<size_t, c10::IValue>& values) {
    if (node->outputs().size() != 1 || !fixed.count(node->output()->unique())) return false;
    const auto& value = values.at(node->output()->unique());
    const auto fits = [](const Tensor& tensor) { return tensor.defined() && tensor.numel() <= kMostElements; };
    if (value.isTensor()) return fits(value.toTensor());
    if (!value.isTensorList() || node->kind() == torch::jit::prim::ListConstruct) return false;
    const auto tensors = value.toTensorVector();
    return std::all_of(tensors.begin(), tensors.end(), fits);
}

// Writes the size and the element type of a tensor.
void write_type(std::ostringstream& out, const Tensor& tensor) {
    out << "{\"size\":[";
    for (int64_t d = 0; d < tensor.dim(); d++) out << (d ? "," : "") << tensor.size(d);
    out << "],\"kind\":" << static_cast<int>(tensor.scalar_type()) << "}";
}

// Writes the type of a result: that of a tensor, those of a list of tensors, or null.
void write_type(std::ostringstream& out, const c10::IValue& value) {
    if (value.isTensor() && value.toTensor().defined()) {
        write_type(out, value.toTensor());
    } else if (value.isTensorList()) {
        const auto tensors = value.toTensorVector();
        out << "[";
        for (size_t i = 0; i < tensors.size(); i++) {
            out << (i ? "," : "");
            write_type(out, tensors[i]);
        }
        out << "]";
    } else {
        out << "null";
    }
}

// Runs a node and writes the types of its outputs.
void run(std::ostringstream& out, Node* node, std::unordered_map<size_t, c10::IValue>& values) {
    torch::jit::Stack stack;
    for (const auto* input : node->inputs()) stack.push_back(values.at(input->unique()));
    if (node->kind() == torch::jit::prim::Constant) {
        stack.push_back(torch::jit::toIValue(node->output()).value_or(c10::IValue()));
    } else if (node->kind() == torch::jit::prim::GetAttr) {
        const auto module = stack.back().toObject();
        stack.push_back(module->getAttr(node->s(torch::jit::attr::name)));
    } else if (node->kind() == torch::jit::prim::ListConstruct) {
        // List constructions are part of the language and not operations.
        c10::impl::GenericList list(node->output()->type()->expectRef<c10::ListType>().getElementType());
        for (const auto& item : stack) list.push_back(item);
        stack.push_back(list);
    } else if (node->kind() == torch::jit::prim::TupleConstruct) {
        stack.push_back(c10::ivalue::Tuple::create(std::vector<c10::IValue>(stack.begin(), stack.end())));
    } else if (node->kind() == torch::jit::prim::ListUnpack) {
        const auto list = stack.back().toListRef().vec();
        for (const auto& item : list) stack.push_back(item);
    } else {
        node->getOperation()(stack);
    }
    out << "[";
    const size_t n = node->outputs().size();
    for (size_t i = 0; i < n; i++) {
        const auto& value = stack[stack.size() - n + i];
        values[node->outputs()[i]->unique()] = value;
        out << (i ? "," : "");
        write_type(out, value);
    }
    out << "]";
}

}  // namespace

// Writes the operations of the file's forward to `json`, {"inputs": [id], "nodes": [{"op", "inputs",
// "outputs", "types", "value"?, "name"?, "of_weights"?}], "outputs": [id]}, in the order in which
// they run. Ids are those of values; types are those of the outputs for the example inputs:
// {"size", "kind"} of a tensor, a list of these, or null. Constants, attributes of modules, precision
// and device of the images, and tensors that are computed from these alone have a value;
// "of_weights" says that attributes are among the inputs, or computed from them. Attributes have the
// name that `state_dict()` gives them. The `n_tensors` tensors that values refer to are returned in
// `tensors`.
//
// The caller frees the string `json` and the array with `free`, and owns the tensors. Returns null,
// or a message if the file can't be read, which the caller frees with `free`.
extern "C" char* foldconv_graph(
    const char* path, const Tensor* const* inputs, int64_t n_inputs, char** json, Tensor*** tensors, int64_t* n_tensors) {
    return guarded([&] {
        const torch::NoGradGuard guard;
        auto module = torch::jit::load(path);
        auto graph = module.get_method("forward").graph()->copy();
        torch::jit::Inline(*graph);
        std::ostringstream out;
        std::vector<Tensor*> all;
        out << "{\"inputs\":";
        write_ids(out, graph->inputs());
        out << ",\"nodes\":[";
        bool first = true;
        std::unordered_map<size_t, c10::IValue> values;
        values[graph->inputs()[0]->unique()] = module._ivalue();
        for (int64_t i = 0; i < n_inputs; i++) values[graph->inputs().at(i + 1)->unique()] = *inputs[i];
        // Values that are computed from attributes of modules, among others.
        std::unordered_set<size_t> weights;
        // Values that are the same for all images.
        std::unordered_set<size_t> fixed = {graph->inputs()[0]->unique()};
        // Prefixes of the names of a module's attributes, by the value of the module.
        std::unordered_map<size_t, std::string> prefixes;
        for (Node* node : graph->nodes()) {
            if (!first) out << ",";
            first = false;
            out << "{\"op\":\"" << node->kind().toQualString() << "\",\"inputs\":";
            write_ids(out, node->inputs());
            out << ",\"outputs\":";
            write_ids(out, node->outputs());
            out << ",\"types\":";
            run(out, node, values);
            const bool is_attribute = node->kind() == torch::jit::prim::GetAttr;
            const bool of_weights = is_attribute || std::any_of(
                node->inputs().begin(), node->inputs().end(), [&](const auto* input) { return weights.count(input->unique()) > 0; });
            const bool same_for_all = is_fixed(node, fixed);
            for (const auto* output : node->outputs()) {
                if (same_for_all) fixed.insert(output->unique());
                if (of_weights) weights.insert(output->unique());
            }
            if (of_weights && !is_attribute) out << ",\"of_weights\":true";
            if (node->kind() == torch::jit::prim::GetAttr) {
                const auto name = prefixes[node->input()->unique()] + node->s(torch::jit::attr::name);
                prefixes[node->output()->unique()] = name + ".";
                out << ",\"name\":\"" << name << "\"";
            }
            if (is_known(node->kind()) || is_computed(node, fixed, values)) {
                out << ",\"value\":";
                write(out, values.at(node->output()->unique()), &all);
            }
            out << "}";
        }
        out << "],\"outputs\":";
        write_ids(out, graph->outputs());
        out << "}";
        give(out, all, json, tensors, n_tensors);
    });
}
