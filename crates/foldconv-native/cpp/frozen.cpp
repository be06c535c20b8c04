// The operations of a TorchScript file that any program wrote: its forward in evaluation, with all
// calls inlined and all attributes as constants.

#include "guarded.h"
#include "json.h"

#include <torch/csrc/jit/ir/ir.h>
#include <torch/csrc/jit/passes/dead_code_elimination.h>
#include <torch/csrc/jit/passes/freeze_module.h>
#include <torch/csrc/jit/passes/inliner.h>
#include <torch/csrc/jit/passes/lower_tuples.h>
#include <torch/csrc/jit/passes/remove_exceptions.h>
#include <torch/csrc/jit/serialization/import.h>
#include <torch/types.h>

#include <map>
#include <set>
#include <string>
#include <tuple>
#include <vector>

namespace {

using at::Tensor;
using torch::jit::Block;
using torch::jit::Node;
using torch::jit::Value;

// Finds the name of a tensor in the state dict by its place in memory.
class Names {
public:
    explicit Names(const torch::jit::Module& module) {
        for (const auto& of : module.named_parameters()) names_.emplace(place(of.value), of.name);
        for (const auto& of : module.named_buffers()) names_.emplace(place(of.value), of.name);
    }

    std::string find(const Tensor& tensor) const {
        const auto found = names_.find(place(tensor));
        return found == names_.end() ? "" : found->second;
    }

private:
    using Place = std::tuple<const void*, std::vector<int64_t>>;

    static Place place(const Tensor& tensor) {
        if (!tensor.defined() || !tensor.has_storage()) return {};
        return {tensor.const_data_ptr(), tensor.sizes().vec()};
    }

    std::map<Place, std::string> names_;
};

void write(std::ostringstream& out, at::ArrayRef<const Value*> values) {
    out << "[";
    for (size_t i = 0; i < values.size(); i++) {
        out << (i ? "," : "");
        quote(out, values[i]->debugName());
    }
    out << "]";
}

// Adds the values that a block reads and does not make.
void captured(const Block& block, std::set<const Value*>& made, std::vector<const Value*>& read) {
    for (const auto* input : block.inputs()) made.insert(input);
    for (const auto* node : block.nodes()) {
        for (const auto* input : node->inputs()) {
            if (!made.count(input)) read.push_back(input);
        }
        for (const auto* inner : node->blocks()) captured(*inner, made, read);
        for (const auto* output : node->outputs()) made.insert(output);
    }
    for (const auto* output : block.outputs()) {
        if (!made.count(output)) read.push_back(output);
    }
}

void write(std::ostringstream& out, const Node& node, const Names& names, std::vector<Tensor*>& tensors) {
    const auto* schema = node.maybeSchema();
    std::vector<const Value*> inputs(node.inputs().begin(), node.inputs().end());
    std::set<const Value*> made;
    for (const auto* block : node.blocks()) captured(*block, made, inputs);
    out << "{\"op\":";
    quote(out, node.kind().toQualString());
    out << ",\"overload\":";
    quote(out, schema ? schema->overload_name() : "");
    out << ",\"inputs\":";
    write(out, inputs);
    out << ",\"outputs\":";
    write(out, std::vector<const Value*>(node.outputs().begin(), node.outputs().end()));
    if (!node.blocks().empty()) out << ",\"blocks\":true";
    if (node.kind() == torch::jit::prim::Constant) {
        const auto value = torch::jit::toIValue(node.output()).value_or(c10::IValue());
        out << ",\"value\":";
        ::write(out, value, &tensors);
        if (value.isTensor()) {
            out << ",\"name\":";
            quote(out, names.find(value.toTensor()));
        }
    }
    out << "}";
}

}  // namespace

// Writes the operations of the file's forward to `json`, {"inputs": [value], "nodes": [{"op",
// "overload", "inputs", "outputs", "blocks"?, "value"?, "name"?}], "outputs": [value]}, in the order
// in which they run. A node with blocks, such as a condition, reads all that its blocks read. A
// constant has a value, and a tensor of the state dict its name there. The `n_tensors` tensors that
// values refer to are returned in `tensors`.
//
// The caller frees the string `json` and the array with `free`, and owns the tensors. Returns null,
// or a message if the file can't be read, which the caller frees with `free`.
extern "C" char* foldconv_frozen(const char* path, char** json, Tensor*** tensors, int64_t* n_tensors) {
    return guarded([&] {
        const torch::NoGradGuard guard;
        auto module = torch::jit::load(path, c10::kCPU);
        const Names names(module);
        // A module that was frozen before it was saved has no such attribute.
        if (module.hasattr("training")) {
            module.eval();
            module = torch::jit::freeze_module(module);
        }
        auto graph = module.get_method("forward").graph()->copy();
        torch::jit::Inline(*graph);
        torch::jit::LowerSimpleTuples(graph);
        // A condition that only guards an error, as of a wrong shape, is taken as met.
        torch::jit::EliminateExceptions(graph);
        torch::jit::EliminateDeadCode(graph);
        std::ostringstream out;
        std::vector<Tensor*> all;
        const auto inputs = graph->inputs().slice(1);
        out << "{\"inputs\":";
        write(out, std::vector<const Value*>(inputs.begin(), inputs.end()));
        out << ",\"nodes\":[";
        bool first = true;
        for (const Node* node : graph->nodes()) {
            out << (first ? "" : ",");
            first = false;
            write(out, *node, names, all);
        }
        out << "],\"outputs\":";
        write(out, std::vector<const Value*>(graph->outputs().begin(), graph->outputs().end()));
        out << "}";
        give(out, all, json, tensors, n_tensors);
    });
}
