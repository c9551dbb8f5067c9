// The C functions for streams and graphs.
#include "api/exported.h"
#include "core/checks.h"
#include "core/validate.h"
#include "mustafar/mustafar.h"

using namespace mustafar;

namespace {

void run(const mustafar_context* context, GraphCall call, void* graph, void** made) {
    const Backend& chosen = backend(checked(context));
    ErrorText text;
    pass_on(chosen.graph(*context, call, graph, made, text), text);
}

void check_graph(const void* graph) {
    if (graph == nullptr) fail(MUSTAFAR_STATUS_INVALID_ARGUMENT, "graph: expected a captured graph, got null");
}

// A separate stream: the default stream can be neither captured nor destroyed.
void need_stream(const mustafar_context* context) {
    if (checked(context).device == MUSTAFAR_DEVICE_CUDA && context->stream == nullptr)
        fail(MUSTAFAR_STATUS_INVALID_ARGUMENT, "context.stream: expected a stream of mustafar_stream_create, got null");
}

}  // namespace

int32_t mustafar_stream_create(const mustafar_context* context, void** stream) {
    return exported([&] {
        not_null("stream", stream);
        *stream = nullptr;
        run(context, GraphCall::create_stream, nullptr, stream);
    });
}

int32_t mustafar_stream_destroy(const mustafar_context* context) {
    return exported([&] {
        need_stream(context);
        run(context, GraphCall::destroy_stream, nullptr, nullptr);
    });
}

int32_t mustafar_capture_begin(const mustafar_context* context) {
    return exported([&] {
        need_stream(context);
        run(context, GraphCall::begin_capture, nullptr, nullptr);
    });
}

int32_t mustafar_capture_end(const mustafar_context* context, void** graph) {
    return exported([&] {
        need_stream(context);
        if (graph != nullptr) *graph = nullptr;
        run(context, GraphCall::end_capture, nullptr, graph);
    });
}

int32_t mustafar_graph_launch(const mustafar_context* context, void* graph) {
    return exported([&] {
        check_graph(graph);
        run(context, GraphCall::launch, graph, nullptr);
    });
}

int32_t mustafar_graph_destroy(const mustafar_context* context, void* graph) {
    return exported([&] {
        check_graph(graph);
        run(context, GraphCall::destroy, graph, nullptr);
    });
}
