using System.CommandLine;
using static TorchSharp.torch;

namespace Mustafar.Benchmarks.Decode;

/// <summary>The command that measures whole decode steps.</summary>
internal static class DecodeCommand
{
    internal static Command Create(BenchmarkOptions shared)
    {
        Option<DirectoryInfo?> model = new("--model") { Description = "Folder of a checkpoint; random weights of the sizes below without.", HelpName = "DIR" };
        Option<int> layers = Size("--layers", "Layers.", 32), hidden = Size("--hidden", "hidden_size.", 4096);
        Option<int?> intermediate = new("--intermediate") { Description = "intermediate_size; 3.5 times hidden_size by default." };
        Option<int?> heads = new("--heads") { Description = "Query heads; hidden_size / 128 by default." };
        Option<int?> kvHeads = new("--kv-heads") { Description = "KV heads; a quarter of the query heads by default." };
        Option<int> vocab = Size("--vocab", "Tokens of the vocabulary.", 128_256);
        Option<int[]> batches = Sizes("--batch", "Numbers of sequences.", [1, 8, 32, 64]);
        Option<int[]> contexts = Sizes("--context", "Tokens of each sequence.", [2048, 8192, 32768]);
        Option<bool> largest = new("--largest") { Description = "Measure the largest number of sequences that fits into the device's memory, too." };
        Option<int> steps = Size("--steps", "Steps of each figure.", 30);
        Option<bool> eager = new("--eager") { Description = "Run steps as they are, without CUDA graphs." };
        Option<ScalarType> dtype = new("--dtype") { Description = "float32, float16 or bfloat16.", DefaultValueFactory = _ => ScalarType.BFloat16 };
        Command command = new("decode", "Whole decode steps of a model, sampling included, with dense and compressed caches.")
        {
            model, layers, hidden, intermediate, heads, kvHeads, vocab, batches, contexts, largest, steps, eager, dtype,
            shared.Keep, shared.Device, shared.Threads, shared.Output,
        };
        command.SetAction(parsed =>
        {
            int width = parsed.GetRequiredValue(hidden);
            int queryHeads = parsed.GetValue(heads) ?? Math.Max(1, width / 128);
            ModelSizes sizes = new(
                parsed.GetRequiredValue(layers), width, parsed.GetValue(intermediate) ?? width * 7 / 2, queryHeads,
                parsed.GetValue(kvHeads) ?? Math.Max(1, queryHeads / 4), parsed.GetRequiredValue(vocab));
            if (width % sizes.Heads != 0 || sizes.Heads % sizes.KvHeads != 0)
            {
                Console.Error.WriteLine($"Expected --hidden to be a multiple of --heads, and that of --kv-heads, but got {width}, {sizes.Heads} and {sizes.KvHeads}.");
                return 1;
            }

            int added = 2 * (DecodeBenchmark.WarmUp + parsed.GetRequiredValue(steps));
            if (parsed.GetRequiredValue(contexts).Min() <= added)
            {
                Console.Error.WriteLine($"Expected --context of more than {added} tokens, those that the steps add, but got {parsed.GetRequiredValue(contexts).Min()}.");
                return 1;
            }

            DecodeBenchmark.Run(new DecodeSettings(
                parsed.GetValue(model), sizes, parsed.GetRequiredValue(batches), parsed.GetRequiredValue(contexts), parsed.GetValue(largest),
                parsed.GetResult(shared.Keep) is null ? [new(64, false), new(40, false), new(64, true), new(40, true)] : parsed.GetRequiredValue(shared.Keep),
                parsed.GetRequiredValue(dtype), parsed.GetRequiredValue(shared.Device), parsed.GetRequiredValue(shared.Threads),
                parsed.GetRequiredValue(steps), parsed.GetValue(eager), parsed.GetValue(shared.Output)));
            return 0;
        });
        return command;
    }

    private static Option<int> Size(string name, string description, int value) => new(name)
    {
        Description = description,
        DefaultValueFactory = _ => value,
        Validators = { result => Check(name, result.GetValueOrDefault<int>(), result.AddError) },
    };

    private static Option<int[]> Sizes(string name, string description, int[] values) => new(name)
    {
        Description = description,
        AllowMultipleArgumentsPerToken = true,
        DefaultValueFactory = _ => values,
        Validators = { result => Array.ForEach(result.GetValueOrDefault<int[]>() ?? [], value => Check(name, value, result.AddError)) },
    };

    private static void Check(string name, int value, Action<string> addError)
    {
        if (value < 1)
        {
            addError($"Expected {name} of at least 1, but got {value}.");
        }
    }
}
