// The operations of a TorchScript file that any program wrote: its forward in evaluation, with all
// calls inlined and all attributes as constants.

#include "guarded.h"
#include "json.h"

#include <torch/csrc/jit/ir/constants.h>
#include <torch/csrc/jit/ir/ir.h>
#include <torch/csrc/jit/passes/constant_propagation.h>
#include <torch/csrc/jit/passes/dead_code_elimination.h>
#include <torch/csrc/jit/passes/freeze_module.h>
#include <torch/csrc/jit/passes/inliner.h>
#include <torch/csrc/jit/passes/lower_tuples.h>
#include <torch/csrc/jit/passes/peephole.h>
#include <torch/csrc/jit/passes/remove_exceptions.h>
#include <torch/csrc/jit/serialization/import.h>
#include <torch/types.h>

#include <map>
#include <memory>
#include <set>
#include <string>
#include <tuple>
#include <vector>

namespace {

using at::Tensor;
using torch::jit::Block;
using torch::jit::Node;
using torch::jit::Value;

// A tensor of the state dict, or one that is not in it and has no name.
struct Entry {
    std::string name;
    bool is_parameter = false;
    Tensor tensor;
};

// Finds the name of a tensor in the state dict by its place in memory.
class Names {
public:
    explicit Names(const torch::jit::Module& module) {
        for (const auto& of : module.named_parameters()) names_.emplace(place(of.value), Entry{of.name, true, of.value});
        for (const auto& of : module.named_buffers()) names_.emplace(place(of.value), Entry{of.name, false, of.value});
    }

    Entry find(const Tensor& tensor) const {
        const auto found = names_.find(place(tensor));
        return found == names_.end() ? Entry{"", false, tensor} : found->second;
    }

private:
    using Place = std::tuple<const void*, std::vector<int64_t>>;

    static Place place(const Tensor& tensor) {
        if (!tensor.defined() || !tensor.has_storage()) return {};
        return {tensor.const_data_ptr(), tensor.sizes().vec()};
    }

    std::map<Place, Entry> names_;
};

// The attributes that a graph with all calls inlined reads: modules, tensors, and values that become
// constants.
class Attributes {
public:
    Attributes(torch::jit::Graph& graph, const torch::jit::Module& module) : graph_(graph) {
        modules_[graph.inputs()[0]] = {"", module._ivalue()};
        visit(*graph.block());
    }

    // The tensor that a node reads from a module; null for any other node.
    const Entry* tensor(const Node& node) const {
        const auto found = reads(node) ? tensors_.find(node.output()) : tensors_.end();
        return found == tensors_.end() ? nullptr : &found->second;
    }

    bool is_module(const Node& node) const {
        return reads(node) && modules_.count(node.output()) > 0;
    }

private:
    // A value that was made later may lie where one lay that is gone.
    static bool reads(const Node& node) { return node.kind() == torch::jit::prim::GetAttr; }

    void visit(Block& block) {
        for (auto* node : block.nodes()) {
            if (reads(*node)) read(*node);
            for (auto* inner : node->blocks()) visit(*inner);
        }
    }

    void read(Node& node) {
        const auto found = modules_.find(node.input());
        if (found == modules_.end() || !found->second.second.isObject()) return;
        const auto object = found->second.second.toObject();
        const auto& attribute = node.s(torch::jit::attr::name);
        const auto name = found->second.first + attribute;
        const auto value = object->getAttr(attribute);
        if (value.isObject()) {
            modules_[node.output()] = {name + ".", value};
        } else if (value.isTensor()) {
            const auto& type = *object->type();
            tensors_[node.output()] = Entry{name, type.is_parameter(type.getAttributeSlot(attribute)), value.toTensor()};
        } else {
            const torch::jit::WithInsertPoint here(&node);
            if (const auto constant = torch::jit::tryInsertConstant(graph_, value)) node.output()->replaceAllUsesWith(*constant);
        }
    }

    torch::jit::Graph& graph_;
    std::map<const Value*, std::pair<std::string, c10::IValue>> modules_;
    std::map<const Value*, Entry> tensors_;
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

void write(std::ostringstream& out, const Entry& entry, std::vector<Tensor*>& tensors) {
    out << ",\"value\":";
    ::write(out, entry.tensor, &tensors);
    out << ",\"name\":";
    quote(out, entry.name);
    out << ",\"parameter\":" << (entry.is_parameter ? "true" : "false");
}

void write(
    std::ostringstream& out, const Node& node, const Names& names, const Attributes* attributes, std::vector<Tensor*>& tensors) {
    const auto* entry = attributes ? attributes->tensor(node) : nullptr;
    const auto* schema = node.maybeSchema();
    std::vector<const Value*> inputs;
    if (!entry) inputs.assign(node.inputs().begin(), node.inputs().end());
    std::set<const Value*> made;
    for (const auto* block : node.blocks()) captured(*block, made, inputs);
    out << "{\"op\":";
    quote(out, entry ? "prim::Constant" : node.kind().toQualString());
    out << ",\"overload\":";
    quote(out, schema ? schema->overload_name() : "");
    out << ",\"inputs\":";
    write(out, inputs);
    out << ",\"outputs\":";
    write(out, std::vector<const Value*>(node.outputs().begin(), node.outputs().end()));
    if (!node.blocks().empty()) out << ",\"blocks\":true";
    if (entry) {
        write(out, *entry, tensors);
    } else if (node.kind() == torch::jit::prim::Constant) {
        const auto value = torch::jit::toIValue(node.output()).value_or(c10::IValue());
        if (value.isTensor()) {
            write(out, names.find(value.toTensor()), tensors);
        } else {
            out << ",\"value\":";
            ::write(out, value, &tensors);
        }
    }
    out << "}";
}

// Removes conditions that are known, and values that nobody reads.
void simplify(std::shared_ptr<torch::jit::Graph>& graph) {
    torch::jit::LowerSimpleTuples(graph);
    for (int round = 0; round < 2; round++) {
        torch::jit::ConstantPropagation(graph);
        torch::jit::PeepholeOptimize(graph);
    }
    // A condition that only guards an error, as of a wrong shape, is taken as met.
    torch::jit::EliminateExceptions(graph);
    torch::jit::ConstantPropagation(graph);
    torch::jit::EliminateDeadCode(graph);
}

bool is_straight(const torch::jit::Graph& graph, const Attributes& attributes) {
    for (const auto* node : graph.nodes()) {
        const bool is_open = node->kind() == torch::jit::prim::GetAttr && !attributes.tensor(*node) && !attributes.is_module(*node);
        if (!node->blocks().empty() || is_open) return false;
    }
    return true;
}

}  // namespace

// Writes the operations of the file's forward to `json`, {"inputs": [value], "nodes": [{"op",
// "overload", "inputs", "outputs", "blocks"?, "value"?, "name"?, "parameter"?}], "outputs": [value]},
// in the order in which they run. A node with blocks, such as a condition, reads all that its blocks read. A
// constant has a value, and a tensor of the state dict its name there, and whether it is a parameter. The `n_tensors` tensors that
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
        const bool has_mode = module.hasattr("training");
        if (has_mode) module.eval();
        auto graph = module.get_method("forward").graph()->copy();
        torch::jit::Inline(*graph);
        // Freezing makes one constant of equal tensors, such as the variances of new batch norms, so
        // the attributes are kept apart where that leads to a graph without conditions.
        auto attributes = std::make_unique<Attributes>(*graph, module);
        simplify(graph);
        if (has_mode && !is_straight(*graph, *attributes)) {
            module = torch::jit::freeze_module(module);
            graph = module.get_method("forward").graph()->copy();
            torch::jit::Inline(*graph);
            attributes.reset();
            simplify(graph);
        }
        std::ostringstream out;
        std::vector<Tensor*> all;
        const auto inputs = graph->inputs().slice(1);
        out << "{\"inputs\":";
        write(out, std::vector<const Value*>(inputs.begin(), inputs.end()));
        out << ",\"nodes\":[";
        bool first = true;
        for (const Node* node : graph->nodes()) {
            if (attributes && attributes->is_module(*node)) continue;
            out << (first ? "" : ",");
            first = false;
            write(out, *node, names, attributes.get(), all);
        }
        out << "],\"outputs\":";
        write(out, std::vector<const Value*>(graph->outputs().begin(), graph->outputs().end()));
        out << "}";
        give(out, all, json, tensors, n_tensors);
    });
}
