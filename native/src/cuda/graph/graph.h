// Streams of a caller's own, and graphs of what is queued on them.
#pragma once

#include "core/backend.h"

namespace mustafar::cuda {

// graph: the one to launch or to destroy. made: where a stream or a captured graph goes; null drops what was captured.
void run_graph_call(const mustafar_context& context, GraphCall call, void* graph, void** made);

}  // namespace mustafar::cuda
