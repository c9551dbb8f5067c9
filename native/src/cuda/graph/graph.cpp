#include "cuda/graph/graph.h"

#include "cuda/common/launch.h"

namespace mustafar::cuda {
namespace {

void* end_capture(cudaStream_t stream, bool keep) {
    cudaGraph_t graph = nullptr;
    check(cudaStreamEndCapture(stream, &graph), "cudaStreamEndCapture");
    cudaGraphExec_t executable = nullptr;
    const cudaError_t status = keep ? cudaGraphInstantiate(&executable, graph, 0) : cudaSuccess;
    cudaGraphDestroy(graph);
    check(status, "cudaGraphInstantiate");
    return executable;
}

}  // namespace

void run_graph_call(const mustafar_context& context, GraphCall call, void* graph, void** made) {
    const DeviceScope scope(context);
    switch (call) {
        case GraphCall::create_stream: {
            cudaStream_t stream = nullptr;
            check(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), "cudaStreamCreateWithFlags");
            *made = stream;
            return;
        }
        case GraphCall::destroy_stream: check(cudaStreamDestroy(scope.stream), "cudaStreamDestroy"); return;
        case GraphCall::begin_capture:
            check(cudaStreamBeginCapture(scope.stream, cudaStreamCaptureModeRelaxed), "cudaStreamBeginCapture");
            return;
        case GraphCall::end_capture: {
            void* const captured = end_capture(scope.stream, made != nullptr);
            if (made != nullptr) *made = captured;
            return;
        }
        case GraphCall::launch:
            check(cudaGraphLaunch(static_cast<cudaGraphExec_t>(graph), scope.stream), "cudaGraphLaunch");
            return;
        case GraphCall::destroy:
            check(cudaGraphExecDestroy(static_cast<cudaGraphExec_t>(graph)), "cudaGraphExecDestroy");
            return;
    }
}

}  // namespace mustafar::cuda
