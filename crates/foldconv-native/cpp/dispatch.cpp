// Calls of libtorch's operators by name, for graphs whose operators are known at run time only.

#include "guarded.h"
#include "json.h"

#include <torch/csrc/jit/runtime/operator.h>
#include <torch/types.h>

#include <cstdlib>
#include <cstring>
#include <mutex>
#include <optional>
#include <sstream>
#include <string>

namespace {

using at::Tensor;
using c10::IValue;
using torch::jit::Operator;

// A value that crosses the border to Rust. Which members count depends on the tag.
struct Value {
    int32_t tag;
    int64_t integer;  // TAG_INT, TAG_BOOL; the length of TAG_TEXT and TAG_LIST
    double number;    // TAG_FLOAT
    void* pointer;    // TAG_TENSOR: Tensor*; TAG_TEXT: char*; TAG_LIST: Value*
};

enum Tag { TAG_NONE, TAG_TENSOR, TAG_INT, TAG_FLOAT, TAG_BOOL, TAG_TEXT, TAG_LIST };

IValue to_ivalue(const Value& value, const c10::TypePtr& type, c10::optional<int32_t> length);

// Returns a list of the element type of an argument. A single number stands for `length` equal ones, as in
// `stride=2`.
IValue to_list(const Value& value, const c10::TypePtr& element, c10::optional<int32_t> length) {
    c10::impl::GenericList list(element);
    if (value.tag == TAG_LIST) {
        const auto* items = static_cast<const Value*>(value.pointer);
        for (int64_t i = 0; i < value.integer; i++) list.push_back(to_ivalue(items[i], element, c10::nullopt));
    } else {
        TORCH_CHECK(length, "a list is missing");
        for (int32_t i = 0; i < *length; i++) list.push_back(to_ivalue(value, element, c10::nullopt));
    }
    return list;
}

// Converts a value to the type that the operator's schema asks for.
IValue to_ivalue(const Value& value, const c10::TypePtr& type, c10::optional<int32_t> length) {
    if (type->kind() == c10::TypeKind::OptionalType) {
        if (value.tag == TAG_NONE) return IValue();
        return to_ivalue(value, type->castRaw<c10::OptionalType>()->getElementType(), length);
    }
    switch (type->kind()) {
        case c10::TypeKind::ListType:
            return to_list(value, type->castRaw<c10::ListType>()->getElementType(), length);
        case c10::TypeKind::FloatType:
            if (value.tag == TAG_INT) return static_cast<double>(value.integer);
            break;
        case c10::TypeKind::TensorType:
            if (value.tag == TAG_INT) return at::scalar_tensor(value.integer, at::kLong);
            if (value.tag == TAG_FLOAT) return at::scalar_tensor(value.number);
            break;
        case c10::TypeKind::DeviceObjType:
            TORCH_CHECK(value.tag == TAG_TEXT, "a device is missing");
            return c10::Device(std::string(static_cast<const char*>(value.pointer), value.integer));
        default:
            break;
    }
    switch (value.tag) {
        case TAG_NONE: return IValue();
        case TAG_TENSOR: return *static_cast<const Tensor*>(value.pointer);
        case TAG_INT: return value.integer;
        case TAG_FLOAT: return value.number;
        case TAG_BOOL: return value.integer != 0;
        case TAG_TEXT: return std::string(static_cast<const char*>(value.pointer), value.integer);
        default: TORCH_CHECK(false, "a list stands where the operator takes ", type->repr_str());
    }
}

// oneDNN's LSTM writes beyond its memory if the first state has another batch than the input, or
// another shape than the weights, which libtorch leaves to Python to check.
class WithoutMkldnn {
public:
    WithoutMkldnn() : turn_(mutex()), before_(at::globalContext().userEnabledMkldnn()) {
        at::globalContext().setUserEnabledMkldnn(false);
    }
    ~WithoutMkldnn() { at::globalContext().setUserEnabledMkldnn(before_); }
    WithoutMkldnn(const WithoutMkldnn&) = delete;
    WithoutMkldnn& operator=(const WithoutMkldnn&) = delete;

private:
    // The setting is that of the process, so that two calls at once would restore each other's.
    static std::mutex& mutex() {
        static std::mutex one;
        return one;
    }

    std::lock_guard<std::mutex> turn_;
    bool before_;
};

Value* allocate(size_t n) {
    auto* values = static_cast<Value*>(calloc(n + 1, sizeof(Value)));
    TORCH_CHECK(values, "no memory");
    return values;
}

Value from_ivalue(const IValue& value) {
    Value result{};
    if (value.isTensor()) {
        if (!value.toTensor().defined()) return result;
        result.tag = TAG_TENSOR;
        result.pointer = new Tensor(value.toTensor());
    } else if (value.isInt()) {
        result.tag = TAG_INT;
        result.integer = value.toInt();
    } else if (value.isDouble()) {
        result.tag = TAG_FLOAT;
        result.number = value.toDouble();
    } else if (value.isBool()) {
        result.tag = TAG_BOOL;
        result.integer = value.toBool();
    } else if (value.isString()) {
        result.tag = TAG_TEXT;
        result.integer = static_cast<int64_t>(value.toStringRef().size());
        result.pointer = strdup(value.toStringRef().c_str());
    } else if (value.isDevice()) {
        const auto text = value.toDevice().str();
        result.tag = TAG_TEXT;
        result.integer = static_cast<int64_t>(text.size());
        result.pointer = strdup(text.c_str());
    } else if (value.isList() || value.isTuple()) {
        const auto items = value.isList() ? value.toListRef().vec() : value.toTupleRef().elements().vec();
        result.tag = TAG_LIST;
        result.integer = static_cast<int64_t>(items.size());
        auto* values = allocate(items.size());
        for (size_t i = 0; i < items.size(); i++) values[i] = from_ivalue(items[i]);
        result.pointer = values;
    } else {
        TORCH_CHECK(value.isNone(), "a result that is neither a tensor nor a number");
    }
    return result;
}

}  // namespace

// Returns the operator `name` (as `aten::conv2d`) with the overload of that name, or null if libtorch has none. Operators
// live as long as the process.
extern "C" const void* foldconv_operator(const char* name, const char* overload) {
    // These check nothing, since libtorch calls them behind its own checks.
    if (std::string(name).find("mkldnn_") != std::string::npos) return nullptr;
    try {
        for (const auto& found : torch::jit::getAllOperatorsFor(c10::Symbol::fromQualString(name))) {
            if (found->schema().overload_name() == overload) return found.get();
        }
    } catch (const std::exception&) {
        // A name that is no qualified name.
    }
    return nullptr;
}

// Returns the arguments of an operator as JSON, [{"name", "default"?}], and how many results it has. The caller frees the
// text.
extern "C" char* foldconv_operator_schema(const void* operator_, int64_t* results) {
    const auto& schema = static_cast<const Operator*>(operator_)->schema();
    std::ostringstream out;
    out << "[";
    bool first = true;
    for (const auto& argument : schema.arguments()) {
        out << (first ? "" : ",") << "{\"name\":";
        first = false;
        quote(out, argument.name());
        if (argument.default_value()) {
            out << ",\"default\":";
            write(out, *argument.default_value(), nullptr);
        }
        out << "}";
    }
    out << "]";
    *results = static_cast<int64_t>(schema.returns().size());
    return strdup(out.str().c_str());
}

// Calls an operator with all its arguments in their order. Returns null and the results, which the caller gives back to
// `foldconv_values_free` after it has taken the tensors; or a message that the caller frees.
extern "C" char* foldconv_operator_call(
    const void* operator_, const Value* arguments, int64_t n, Value** results, int64_t* n_results) {
    return guarded([&] {
        const auto& found = *static_cast<const Operator*>(operator_);
        const auto& schema = found.schema();
        TORCH_CHECK(static_cast<size_t>(n) == schema.arguments().size(), "it takes ", schema.arguments().size(), " arguments, not ", n);
        torch::jit::Stack stack;
        stack.reserve(n);
        for (int64_t i = 0; i < n; i++) {
            const auto& argument = schema.arguments()[i];
            stack.push_back(to_ivalue(arguments[i], argument.type(), argument.N()));
        }
        std::optional<WithoutMkldnn> guard;
        if (schema.name() == "aten::lstm") guard.emplace();
        found.getOperation()(stack);
        auto* values = allocate(stack.size());
        for (size_t i = 0; i < stack.size(); i++) values[i] = from_ivalue(stack[i]);
        *results = values;
        *n_results = static_cast<int64_t>(stack.size());
    });
}

// Frees an array of values with their texts and lists. Tensors belong to whoever took them.
extern "C" void foldconv_values_free(Value* values, int64_t n) {
    for (int64_t i = 0; i < n; i++) {
        if (values[i].tag == TAG_TEXT) free(values[i].pointer);
        if (values[i].tag == TAG_LIST) foldconv_values_free(static_cast<Value*>(values[i].pointer), values[i].integer);
    }
    free(values);
}
