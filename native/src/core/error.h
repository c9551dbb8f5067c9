// Errors inside the library are exceptions; at each library's boundary they become a status and a text.
#pragma once

#include <cstdarg>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <exception>
#include <new>

#include "mustafar/mustafar.h"

namespace mustafar {

struct ErrorText {
    char text[512];
};

class Error : public std::exception {
public:
    Error(mustafar_status status, const ErrorText& text) noexcept : status_(status), text_(text) {}
    mustafar_status status() const noexcept { return status_; }
    const char* what() const noexcept override { return text_.text; }

private:
    mustafar_status status_;
    ErrorText text_;
};

[[noreturn, gnu::format(printf, 2, 3)]] inline void fail(mustafar_status status, const char* format, ...) {
    ErrorText text;
    va_list arguments;
    va_start(arguments, format);
    std::vsnprintf(text.text, sizeof text.text, format, arguments);
    va_end(arguments);
    throw Error(status, text);
}

inline void set_text(ErrorText& target, const char* text) noexcept {
    std::snprintf(target.text, sizeof target.text, "%s", text);
}

// Runs one call; no exception leaves it.
template <class Call>
int32_t guarded(ErrorText& error, Call&& call) noexcept {
    try {
        call();
        error.text[0] = '\0';
        return MUSTAFAR_STATUS_OK;
    } catch (const Error& failure) {
        set_text(error, failure.what());
        return failure.status();
    } catch (const std::bad_alloc&) {
        set_text(error, "out of memory");
        return MUSTAFAR_STATUS_OUT_OF_MEMORY;
    } catch (const std::exception& failure) {
        set_text(error, failure.what());
        return MUSTAFAR_STATUS_INTERNAL_ERROR;
    } catch (...) {
        set_text(error, "unknown error");
        return MUSTAFAR_STATUS_INTERNAL_ERROR;
    }
}

}  // namespace mustafar
