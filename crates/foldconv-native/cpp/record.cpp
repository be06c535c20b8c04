// Recording of a network as TorchScript: a tree of modules that hold its tensors under their names,
// and the operations of its forward.

#include "guarded.h"

#include <torch/csrc/jit/api/module.h>
#include <torch/csrc/jit/frontend/tracer.h>
#include <torch/csrc/jit/ir/constants.h>
#include <torch/csrc/jit/ir/ir.h>
#include <torch/csrc/jit/passes/dead_code_elimination.h>
#include <torch/types.h>

#include <cstdlib>
#include <map>
#include <memory>
#include <string>
#include <vector>

namespace {

using at::Tensor;
using torch::jit::Module;

// The modules, by the prefixes of the tensors' names: for `layer1.0.conv1.weight` they are
// `layer1`, `0` in it, and `conv1` in that.
class Tree {
public:
    explicit Tree(std::shared_ptr<torch::jit::CompilationUnit> unit) : unit_(std::move(unit)), module_(make()) {
        modules_.emplace("", module_);
    }

    Module& root() { return module_; }

    // Adds a tensor, and the modules that its name goes through.
    void add(const std::string& name, const Tensor& tensor) {
        const auto dot = name.rfind('.');
        const bool nested = dot != std::string::npos;
        auto module = nested ? find(name.substr(0, dot)) : module_;
        module.register_parameter(nested ? name.substr(dot + 1) : name, tensor, /*is_buffer=*/!tensor.requires_grad());
    }

private:
    Module make() {
        // Each module has its own class, numbered by libtorch, because their tensors differ.
        Module module(c10::QualifiedName("__torch__.foldconv.Network"), unit_, /*shouldMangle=*/true);
        // A network is recorded in evaluation mode; PyTorch's train() and eval() set this
        // attribute, which has no effect.
        module.register_attribute("training", c10::BoolType::get(), false);
        return module;
    }

    Module find(const std::string& path) {
        const auto known = modules_.find(path);
        if (known != modules_.end()) return known->second;
        const auto dot = path.rfind('.');
        auto parent = dot == std::string::npos ? module_ : find(path.substr(0, dot));
        auto module = make();
        parent.register_module(dot == std::string::npos ? path : path.substr(dot + 1), module);
        return modules_.emplace(path, module).first->second;
    }

    std::shared_ptr<torch::jit::CompilationUnit> unit_;
    Module module_;
    std::map<std::string, Module> modules_;
};

// Makes operations that name a device, or the precision of the example, take those of the images,
// so that a module can be moved or cast as a whole.
void follow(torch::jit::Graph& graph, torch::jit::Value* images, at::ScalarType precision) {
    const torch::jit::WithInsertPoint at_the_front(graph.nodes().front());
    auto* device = graph.insert(c10::prim::device, {images});
    auto* dtype = graph.insert(c10::prim::dtype, {images});
    for (auto* node : graph.nodes()) {
        const auto* schema = node->maybeSchema();
        if (!schema) continue;
        for (size_t at = 0; at < node->inputs().size() && at < schema->arguments().size(); at++) {
            const auto& name = schema->arguments()[at].name();
            const auto value = torch::jit::toIValue(node->input(at));
            if (!value) continue;
            if (name == "device" && value->isDevice()) node->replaceInput(at, device);
            if (name == "dtype" && value->isInt() && value->toInt() == static_cast<int64_t>(precision)) node->replaceInput(at, dtype);
        }
    }
    // Removes constants that are no longer used.
    torch::jit::EliminateDeadCode(graph.block());
}

// Takes the tensors of an array that ends with null, and frees the array.
std::vector<c10::IValue> taken(Tensor** array) {
    std::vector<c10::IValue> tensors;
    for (Tensor** at = array; at && *at; at++) {
        tensors.emplace_back(**at);
        delete *at;
    }
    free(array);
    return tensors;
}

}  // namespace

// Runs forward(context, inputs, n_inputs), which returns an array of new tensors that ends with null,
// made by malloc, or null, and writes the recorded operations to `path`: several results are a tuple.
// If the work reads one of the `n` tensors, the recording reads the module's attribute of that name:
// a parameter if the tensor requires a gradient, else a buffer. Other tensors that it reads become
// constants. Returns null, or a message that the caller frees.
extern "C" char* foldconv_record(
    const char* path,
    const char* const* names,
    const Tensor* const* tensors,
    int64_t n,
    const char* const* input_names,
    const Tensor* const* inputs,
    int64_t n_inputs,
    Tensor** (*forward)(void*, const Tensor* const*, int64_t),
    void* context) {
    return guarded([&] {
        const torch::NoGradGuard guard;
        auto unit = std::make_shared<torch::jit::CompilationUnit>();
        Tree tree(unit);
        for (int64_t i = 0; i < n; i++) tree.add(names[i], *tensors[i]);
        auto& module = tree.root();
        const auto run = [&](torch::jit::Stack stack) {
            std::vector<const Tensor*> x;
            for (const auto& input : stack) x.push_back(&input.toTensor());
            auto results = taken(forward(context, x.data(), static_cast<int64_t>(x.size())));
            TORCH_CHECK(!results.empty(), "the network could not be run");
            if (results.size() == 1) return torch::jit::Stack{results[0]};
            return torch::jit::Stack{c10::ivalue::Tuple::create(std::move(results))};
        };
        torch::jit::Stack examples;
        for (int64_t i = 0; i < n_inputs; i++) examples.emplace_back(*inputs[i]);
        const auto unnamed = [](const torch::autograd::Variable&) { return std::string(); };
        const std::vector<std::string> arguments(input_names, input_names + n_inputs);
        const auto state = torch::jit::tracer::trace(examples, run, unnamed, /*strict=*/true, /*force_outplace=*/false, &module, arguments).first;
        follow(*state->graph, state->graph->inputs().at(1), inputs[0]->scalar_type());
        module.type()->addMethod(unit->create_function(c10::QualifiedName(*module.type()->name(), "forward"), state->graph));
        module.save(path);
    });
}
