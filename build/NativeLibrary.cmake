# Configures and builds the native libraries into BINARY. Run by NativeLibrary.proj as
#   cmake -DSOURCE=… -DBINARY=… -DCUDA=ON|OFF|AUTO -DCUDA_ARCHITECTURES=… -DWARNINGS_AS_ERRORS=… -P NativeLibrary.cmake
# Prints errors as MSBuild knows them, and keeps all output in BINARY/build.log.
cmake_minimum_required(VERSION 3.22)

set(log ${BINARY}/build.log)

function(stop text)
    execute_process(COMMAND ${CMAKE_COMMAND} -E echo "libmustafar : error MUSTAFAR005: ${text}")
    message(FATAL_ERROR "libmustafar was not built")
endfunction()

function(run)
    execute_process(COMMAND ${ARGN} OUTPUT_VARIABLE output ERROR_VARIABLE output RESULT_VARIABLE result)
    file(APPEND ${log} "${output}\n")
    set(output "${output}" PARENT_SCOPE)
    set(result "${result}" PARENT_SCOPE)
endfunction()

# Two builds of the same folder at once (an editor's and a shell's, say) take turns.
file(MAKE_DIRECTORY ${BINARY})
file(LOCK ${BINARY}/build.lock GUARD PROCESS TIMEOUT 3600 RESULT_VARIABLE locked)
if(NOT locked EQUAL 0)
    stop("another build has held ${BINARY}/build.lock for an hour (${locked})")
endif()
file(WRITE ${log} "")

if("$ENV{CXX}" STREQUAL "")
    find_program(compiler NAMES c++ g++ clang++ NO_CACHE)
    if(NOT compiler)
        stop("no C++ compiler was found. Install one that knows C++20 (Debian, Ubuntu: apt-get install g++; Fedora: dnf \
install gcc-c++), name one in the environment variable CXX, or use a built library: -p:MustafarNativePath=PATH")
    endif()
endif()

find_program(ninja NAMES ninja ninja-build NO_CACHE)
find_program(make NAMES make gmake NO_CACHE)
if(ninja)
    set(generator Ninja)
elseif(make)
    set(generator "Unix Makefiles")
else()
    stop("neither ninja nor make was found. Install one (Debian, Ubuntu: apt-get install ninja-build; Fedora: dnf install \
ninja-build)")
endif()

# CMake can't change the generator or the compiler of a folder: start over where either differs.
set(tools "${generator} $ENV{CXX} $ENV{CUDACXX}")
if(EXISTS ${BINARY}/CMakeCache.txt)
    set(tools_before "")
    if(EXISTS ${BINARY}/tools.txt)
        file(READ ${BINARY}/tools.txt tools_before)
    endif()
    if(NOT tools STREQUAL tools_before)
        file(REMOVE_RECURSE ${BINARY}/CMakeCache.txt ${BINARY}/CMakeFiles)
    endif()
endif()
file(WRITE ${BINARY}/tools.txt "${tools}")

# What an earlier build with CUDA left behind must not be taken along.
if(CUDA STREQUAL "OFF")
    file(REMOVE ${BINARY}/lib/libmustafar_cuda.so)
endif()

# As a file, because a list of architectures does not survive the way through several command lines.
set(options ${BINARY}/options.cmake)
file(WRITE ${options} "\
set(CMAKE_BUILD_TYPE Release CACHE STRING \"\" FORCE)
set(MUSTAFAR_CUDA ${CUDA} CACHE STRING \"\" FORCE)
set(MUSTAFAR_WARNINGS_AS_ERRORS ${WARNINGS_AS_ERRORS} CACHE BOOL \"\" FORCE)
")
if(CUDA_ARCHITECTURES)
    file(APPEND ${options} "set(CMAKE_CUDA_ARCHITECTURES \"${CUDA_ARCHITECTURES}\" CACHE STRING \"\" FORCE)\n")
else()
    file(APPEND ${options} "unset(CMAKE_CUDA_ARCHITECTURES CACHE)\n")
endif()
run(${CMAKE_COMMAND} -S ${SOURCE} -B ${BINARY} -G ${generator} -C ${options})
if(NOT result EQUAL 0)
    string(REGEX MATCH "CMake Error.*" reason "${output}")
    string(REGEX REPLACE "[ \n]+" " " reason "${reason}")
    stop("configuring with CMake failed: ${reason}")
endif()

run(${CMAKE_COMMAND} --build ${BINARY} --parallel)
if(NOT result EQUAL 0)
    # MSBuild picks the compiler's errors out of this.
    execute_process(COMMAND ${CMAKE_COMMAND} -E cat ${log})
    message(FATAL_ERROR "libmustafar was not built")
endif()
