// Values of libtorch as JSON.
#pragma once

#include <ATen/core/ivalue.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <iomanip>
#include <sstream>
#include <string>
#include <vector>

// Writes a text in quotes.
inline void quote(std::ostringstream& out, const std::string& text) {
    out << '"';
    for (const char c : text) {
        if (static_cast<unsigned char>(c) < 0x20) {
            out << "\\u00" << std::hex << std::setw(2) << std::setfill('0') << static_cast<int>(c) << std::dec;
        } else {
            out << (c == '"' || c == '\\' ? "\\" : "") << c;
        }
    }
    out << '"';
}

// Writes a constant: numbers, flags and lists as they are in JSON, but {"float": number}, {"text":
// text}, and {"tensor": its index in `tensors`}, to which the tensor is appended. Other values, and
// tensors if there is no list for them, are null.
inline void write(std::ostringstream& out, const c10::IValue& value, std::vector<at::Tensor*>* tensors) {
    if (value.isTensor() && value.toTensor().defined() && tensors) {
        out << "{\"tensor\":" << tensors->size() << "}";
        tensors->push_back(new at::Tensor(value.toTensor()));
    } else if (value.isBool()) {
        out << (value.toBool() ? "true" : "false");
    } else if (value.isInt()) {
        out << value.toInt();
    } else if (value.isDouble()) {
        // JSON has no infinities; they are written as text.
        const double number = value.toDouble();
        out << "{\"float\":";
        if (std::isfinite(number)) {
            out << std::setprecision(17) << number;
        } else {
            out << (number > 0 ? "\"inf\"" : number < 0 ? "\"-inf\"" : "\"nan\"");
        }
        out << "}";
    } else if (value.isString()) {
        out << "{\"text\":";
        quote(out, value.toStringRef());
        out << "}";
    } else if (value.isDevice()) {
        out << "{\"text\":";
        quote(out, value.toDevice().str());
        out << "}";
    } else if (value.isList() || value.isTuple()) {
        const auto items = value.isList() ? value.toListRef().vec() : value.toTupleRef().elements().vec();
        out << "[";
        for (size_t i = 0; i < items.size(); i++) {
            out << (i ? "," : "");
            write(out, items[i], tensors);
        }
        out << "]";
    } else {
        out << "null";
    }
}

// Returns the text, which the caller frees, and the tensors that it refers to, which the caller
// owns, in an array that the caller frees.
inline void give(
    const std::ostringstream& out, const std::vector<at::Tensor*>& all, char** json, at::Tensor*** tensors, int64_t* n_tensors) {
    *n_tensors = static_cast<int64_t>(all.size());
    *tensors = static_cast<at::Tensor**>(malloc(sizeof(at::Tensor*) * (all.size() + 1)));
    std::copy(all.begin(), all.end(), *tensors);
    *json = strdup(out.str().c_str());
}
