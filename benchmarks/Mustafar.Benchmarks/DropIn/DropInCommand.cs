using System.CommandLine;
using Mustafar.Benchmarks.Decode;
using static TorchSharp.torch;

namespace Mustafar.Benchmarks.DropIn;

/// <summary>The command that measures another library's model with its own attention and with replaced attention.</summary>
internal static class DropInCommand
{
    internal static Command Create(BenchmarkOptions shared)
    {
        ModelSizeOptions sizes = new(layers: 8, vocab: 32_000);
        Option<int[]> batches = ModelSizeOptions.Sizes("--batch", "Numbers of sequences.", [1, 8, 16]);
        Option<int[]> contexts = ModelSizeOptions.Sizes("--context", "Tokens of each sequence.", [2048, 8192]);
        Option<int> prompt = new("--prompt")
        {
            Description = "Tokens of a prompt whose time and memory are measured first; 0 for none.",
            DefaultValueFactory = _ => 0,
        };
        Option<int> steps = ModelSizeOptions.Size("--steps", "Steps of each figure.", 30);
        Option<ScalarType> dtype = new("--dtype") { Description = "float32, float16 or bfloat16.", DefaultValueFactory = _ => ScalarType.BFloat16 };
        Command command = new(
            "dropin", "Decode steps of a model of Microsoft.ML.GenAI's classes: its own attention and linear layers against UseMustafar.")
        {
            batches, contexts, prompt, steps, dtype, shared.Keep, shared.Device, shared.Threads, shared.Output,
        };
        sizes.AddTo(command);
        command.SetAction(parsed =>
        {
            if (!sizes.TryRead(parsed, out ModelSizes? chosen))
            {
                return 1;
            }

            int added = DropInBenchmark.WarmUp + parsed.GetRequiredValue(steps);
            if (parsed.GetRequiredValue(contexts).Min() <= added)
            {
                Console.Error.WriteLine($"Expected --context of more than the {added} tokens that the steps add, but got {parsed.GetRequiredValue(contexts).Min()}.");
                return 1;
            }

            DropInBenchmark.Run(new DropInSettings(
                chosen, parsed.GetRequiredValue(batches), parsed.GetRequiredValue(contexts), Math.Max(0, parsed.GetRequiredValue(prompt)),
                parsed.GetRequiredValue(shared.Keep)[0], parsed.GetRequiredValue(dtype), parsed.GetRequiredValue(shared.Device),
                parsed.GetRequiredValue(shared.Threads), parsed.GetRequiredValue(steps), parsed.GetValue(shared.Output)));
            return 0;
        });
        return command;
    }
}
