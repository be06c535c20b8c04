// The operations of a TorchScript file: the graph of its forward with all calls inlined, as JSON.

#include "guarded.h"
#include "json.h"

#include <torch/csrc/jit/ir/ir.h>
#include <torch/csrc/jit/passes/inliner.h>
#include <torch/csrc/jit/serialization/import.h>
#include <torch/types.h>

#include <sstream>
#include <string>
#include <unordered_map>

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

// Runs a node and writes the sizes of its outputs.
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
        if (!value.isTensor()) {
            out << "null";
            continue;
        }
        out << "[";
        for (int64_t d = 0; d < value.toTensor().dim(); d++) out << (d ? "," : "") << value.toTensor().size(d);
        out << "]";
    }
    out << "]";
}

}  // namespace

// Writes the operations of the file's forward to `json`, {"inputs": [id], "nodes": [{"op", "inputs",
// "outputs", "sizes", "value"?, "name"?}], "outputs": [id]}, in the order in which they run. Ids
// are those of values; sizes are those of the outputs for the example inputs (null for an output that
// is not a tensor). Constants, attributes of modules, and precision and device of the images have a
// value; attributes have the name that `state_dict()` gives them. The `n_tensors` tensors that
// values refer to are returned in `tensors`.
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
        // Prefixes of the names of a module's attributes, by the value of the module.
        std::unordered_map<size_t, std::string> prefixes;
        for (Node* node : graph->nodes()) {
            if (!first) out << ",";
            first = false;
            out << "{\"op\":\"" << node->kind().toQualString() << "\",\"inputs\":";
            write_ids(out, node->inputs());
            out << ",\"outputs\":";
            write_ids(out, node->outputs());
            out << ",\"sizes\":";
            run(out, node, values);
            if (node->kind() == torch::jit::prim::GetAttr) {
                const auto name = prefixes[node->input()->unique()] + node->s(torch::jit::attr::name);
                prefixes[node->output()->unique()] = name + ".";
                out << ",\"name\":\"" << name << "\"";
            }
            if (is_known(node->kind())) {
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
