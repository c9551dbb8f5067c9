# Cross-compiles for 64-bit Windows with Debian's g++-mingw-w64-x86-64-posix; programs run under wine64.
set(CMAKE_SYSTEM_NAME Windows)
set(CMAKE_SYSTEM_PROCESSOR AMD64)
set(CMAKE_CXX_COMPILER x86_64-w64-mingw32-g++-posix)
# Debian has no wine64 on the path without its package wine, which needs a 32-bit system.
find_program(wine NAMES wine64 wine PATHS /usr/lib/wine NO_CACHE)
if(wine)
    set(CMAKE_CROSSCOMPILING_EMULATOR ${wine})
endif()
