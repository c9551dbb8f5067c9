using System.CommandLine;
using static TorchSharp.torch;

namespace Mustafar.Benchmarks.Decode;

/// <summary>The command that measures whole decode steps.</summary>
internal static class DecodeCommand
{
    internal static Command Create(BenchmarkOptions shared)
    {
        Option<DirectoryInfo?> model = new("--model") { Description = "Folder of a checkpoint; without it, random weights of the sizes below.", HelpName = "DIR" };
        ModelSizeOptions sizes = new(layers: 32, vocab: 128_256);
        Option<int[]> batches = ModelSizeOptions.Sizes("--batch", "Numbers of sequences.", [1, 8, 32, 64]);
        Option<int[]> contexts = ModelSizeOptions.Sizes("--context", "Tokens of each sequence.", [2048, 8192, 32768]);
        Option<bool> largest = new("--largest") { Description = "Also measure the largest number of sequences that fits into the device's memory, and compare it with the largest dense batch." };
        Option<int> steps = ModelSizeOptions.Size("--steps", "Steps of each figure.", 30);
        Option<bool> eager = new("--eager") { Description = "Run steps eagerly, without CUDA graphs." };
        Option<ScalarType> dtype = new("--dtype") { Description = "float32, float16 or bfloat16.", DefaultValueFactory = _ => ScalarType.BFloat16 };
        Command command = new("decode", "Whole decode steps of a model, sampling included, with dense and compressed caches.")
        {
            model, batches, contexts, largest, steps, eager, dtype, shared.Keep, shared.Device, shared.Threads, shared.Output,
        };
        sizes.AddTo(command);
        command.SetAction(parsed =>
        {
            if (!sizes.TryRead(parsed, out ModelSizes? chosen))
            {
                return 1;
            }

            int added = Math.Max(2 * (StepMeasurement.WarmUp + parsed.GetRequiredValue(steps)), StepMeasurement.ManyTokens);
            if (parsed.GetRequiredValue(contexts).Min() <= added)
            {
                Console.Error.WriteLine($"Expected --context of more than the {added} tokens that the steps add, but got {parsed.GetRequiredValue(contexts).Min()}.");
                return 1;
            }

            DecodeBenchmark.Run(new DecodeSettings(
                parsed.GetValue(model), chosen, parsed.GetRequiredValue(batches), parsed.GetRequiredValue(contexts), parsed.GetValue(largest),
                parsed.GetResult(shared.Keep) is null ? [new(64, false), new(40, false), new(64, true), new(40, true)] : parsed.GetRequiredValue(shared.Keep),
                parsed.GetRequiredValue(dtype), parsed.GetRequiredValue(shared.Device), parsed.GetRequiredValue(shared.Threads),
                parsed.GetRequiredValue(steps), parsed.GetValue(eager), parsed.GetValue(shared.Output)));
            return 0;
        });
        return command;
    }
}
