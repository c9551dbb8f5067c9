using System.CommandLine;
using Mustafar.Benchmarks;
using Mustafar.Benchmarks.Cuda;
using Mustafar.Benchmarks.Decode;
using Mustafar.Benchmarks.DropIn;
using Mustafar.Benchmarks.Onnx;
using TorchSharp;

BenchmarkOptions options = new();
RootCommand root = new("Compares Mustafar's operations with torch's dense attention, in one process on this machine.");
root.Subcommands.Add(options.Command("attention", "One decode step of attention over a filled cache.", OnDevice(AttentionBenchmark.Run, CudaAttentionBenchmark.Run)));
root.Subcommands.Add(options.Command("onnx", "One decode step on the CPU, compared with ONNX Runtime's over caches of 32, 8 and 4 bits; one thread in processor time, several by the clock. ONNX Runtime is faster with ORT_GQA_DISABLE_FLASH_ATTENTION=1 in the environment.", OnnxBenchmark.Run));
root.Subcommands.Add(options.Command("grid", "One decode step for few to many KV heads and short to long contexts, as ratios to dense attention.", GridBenchmark.Run, grid: true));
root.Subcommands.Add(options.Command("variants", "One decode step with each of the CPU's instruction set variants.", VariantBenchmark.Run));
root.Subcommands.Add(options.Command("compress", "Pruning and compressing a prompt.", OnDevice(CompressBenchmark.Run, CudaCompressBenchmark.Prompt)));
root.Subcommands.Add(options.Command("append", "Adding one token to each sequence.", OnDevice(AppendBenchmark.Run, CudaCompressBenchmark.Append)));
root.Subcommands.Add(options.Command("step", "The other operations of a decode step, on the CPU.", StepBenchmark.Run));
root.Subcommands.Add(DecodeCommand.Create(options));
root.Subcommands.Add(DropInCommand.Create(options));
root.Subcommands.Add(BarChart.Command());
return root.Parse(args).Invoke();

static Action<Settings> OnDevice(Action<Settings> cpu, Action<Settings> cuda) =>
    settings => (settings.Device.type == DeviceType.CUDA ? cuda : cpu)(settings);
