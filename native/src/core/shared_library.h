// Shared libraries that are loaded at run time. Paths are UTF-8.
#pragma once

#include <string>

namespace mustafar {

// The folder of the library that contains this function, with a trailing separator; empty if the system does not know.
std::string own_folder();

// Loads a library, which is never unloaded. Throws Error with the system's reason.
void* load_library(const std::string& path);

// An exported function of a loaded library; null if there is none of that name.
void* find_function(void* library, const char* name);

}  // namespace mustafar
