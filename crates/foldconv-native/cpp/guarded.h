// The one way in which functions of this library report errors.
#pragma once

#include <cstring>
#include <exception>

// Runs `work`. Returns null, or the message of the exception that it threw, which the caller frees
// with `free`.
template <typename Work>
char* guarded(Work&& work) {
    try {
        work();
        return nullptr;
    } catch (const std::exception& e) {
        return strdup(e.what());
    }
}
