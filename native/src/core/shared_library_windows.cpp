#include <windows.h>

#include "core/error.h"
#include "core/shared_library.h"

namespace mustafar {
namespace {

std::wstring wide(const std::string& text) {
    const int length = static_cast<int>(text.size());
    std::wstring result(static_cast<size_t>(MultiByteToWideChar(CP_UTF8, 0, text.data(), length, nullptr, 0)), L'\0');
    MultiByteToWideChar(CP_UTF8, 0, text.data(), length, result.data(), static_cast<int>(result.size()));
    return result;
}

std::string utf8(const wchar_t* text, size_t characters) {
    const int length = static_cast<int>(characters);
    std::string result(static_cast<size_t>(WideCharToMultiByte(CP_UTF8, 0, text, length, nullptr, 0, nullptr, nullptr)),
                       '\0');
    WideCharToMultiByte(CP_UTF8, 0, text, length, result.data(), static_cast<int>(result.size()), nullptr, nullptr);
    return result;
}

// The system's text of an error, without its line end.
std::string message(DWORD code) {
    wchar_t text[256];
    DWORD length = FormatMessageW(FORMAT_MESSAGE_FROM_SYSTEM | FORMAT_MESSAGE_IGNORE_INSERTS, nullptr, code, 0, text,
                                  static_cast<DWORD>(std::size(text)), nullptr);
    while (length > 0 && (text[length - 1] == L'\n' || text[length - 1] == L'\r' || text[length - 1] == L' ')) --length;
    return length > 0 ? utf8(text, length) : "error " + std::to_string(code);
}

}  // namespace

std::string own_folder() {
    HMODULE self = nullptr;
    if (GetModuleHandleExW(GET_MODULE_HANDLE_EX_FLAG_FROM_ADDRESS | GET_MODULE_HANDLE_EX_FLAG_UNCHANGED_REFCOUNT,
                           reinterpret_cast<LPCWSTR>(&own_folder), &self) == 0)
        return {};
    constexpr DWORD longest_path = 32768;
    std::wstring path(longest_path, L'\0');
    path.resize(GetModuleFileNameW(self, path.data(), longest_path));
    const size_t slash = path.find_last_of(L"\\/");
    return slash == std::wstring::npos ? std::string{} : utf8(path.data(), slash + 1);
}

void* load_library(const std::string& path) {
    // Dependencies of a library are searched for next to it first, then where the system keeps its own.
    const HMODULE library = LoadLibraryExW(wide(path).c_str(), nullptr, LOAD_WITH_ALTERED_SEARCH_PATH);
    if (library == nullptr) fail(MUSTAFAR_STATUS_UNSUPPORTED, "%s: %s", path.c_str(), message(GetLastError()).c_str());
    return library;
}

void* find_function(void* library, const char* name) {
    return reinterpret_cast<void*>(GetProcAddress(static_cast<HMODULE>(library), name));
}

}  // namespace mustafar
