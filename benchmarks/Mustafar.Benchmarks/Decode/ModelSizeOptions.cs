using System.CommandLine;
using System.Diagnostics.CodeAnalysis;

namespace Mustafar.Benchmarks.Decode;

/// <summary>Options for the size of a model of random weights.</summary>
internal sealed class ModelSizeOptions(int layers, int vocab)
{
    private readonly Option<int> _layers = Size("--layers", "Layers.", layers);
    private readonly Option<int> _hidden = Size("--hidden", "hidden_size.", 4096);
    private readonly Option<int?> _intermediate = new("--intermediate") { Description = "intermediate_size; 3.5 times hidden_size by default." };
    private readonly Option<int?> _heads = new("--heads") { Description = "Query heads; hidden_size / 128 by default." };
    private readonly Option<int?> _kvHeads = new("--kv-heads") { Description = "KV heads; a quarter of the query heads by default." };
    private readonly Option<int> _vocab = Size("--vocab", "Tokens of the vocabulary.", vocab);

    internal void AddTo(Command command)
    {
        foreach (Option option in (Option[])[_layers, _hidden, _intermediate, _heads, _kvHeads, _vocab])
        {
            command.Options.Add(option);
        }
    }

    /// <summary>The given sizes; if they are not valid, says on the console what is wrong.</summary>
    internal bool TryRead(ParseResult parsed, [NotNullWhen(true)] out ModelSizes? sizes)
    {
        int width = parsed.GetRequiredValue(_hidden);
        int heads = parsed.GetValue(_heads) ?? Math.Max(1, width / 128);
        sizes = new ModelSizes(
            parsed.GetRequiredValue(_layers), width, parsed.GetValue(_intermediate) ?? width * 7 / 2, heads,
            parsed.GetValue(_kvHeads) ?? Math.Max(1, heads / 4), parsed.GetRequiredValue(_vocab));
        if (Math.Min(sizes.Heads, sizes.KvHeads) >= 1 && width % sizes.Heads == 0 && sizes.Heads % sizes.KvHeads == 0)
        {
            return true;
        }

        Console.Error.WriteLine($"Expected --hidden to be a multiple of --heads, and that of --kv-heads, but got {width}, {sizes.Heads} and {sizes.KvHeads}.");
        sizes = null;
        return false;
    }

    internal static Option<int> Size(string name, string description, int value) => new(name)
    {
        Description = description,
        DefaultValueFactory = _ => value,
        Validators = { result => Check(name, result.GetValueOrDefault<int>(), result.AddError) },
    };

    internal static Option<int[]> Sizes(string name, string description, int[] values) => new(name)
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
