using System.CommandLine;
using System.CommandLine.Parsing;
using System.Globalization;
using Mustafar.Models.Llama;
using static TorchSharp.torch;

namespace Mustafar.Benchmarks;

/// <summary>A shape to measure.</summary>
internal sealed record Shape(int Batch, int NumHeads, int NumKvHeads, int Tokens)
{
    public override string ToString() => string.Create(CultureInfo.InvariantCulture, $"{Batch},{NumHeads},{NumKvHeads},{Tokens}");
}

/// <summary>How many channels of keys and values are kept, by which patterns, and in how many bits (16: not quantised).</summary>
internal sealed record Kept(int Channels, bool Balanced, int Bits = 16)
{
    public override string ToString() => $"{Channels}{(Balanced ? " balanced" : "")}{(Bits < 16 ? $" {Bits} bits" : "")}";
}

/// <summary>What to measure.</summary>
internal sealed record Settings(
    IReadOnlyList<Shape> Shapes, IReadOnlyList<int> Groups, IReadOnlyList<ScalarType> DTypes, IReadOnlyList<Kept> Keeps, int HeadDim, Device Device, int Threads,
    double Seconds, DirectoryInfo? Output);

/// <summary>Options common to all benchmarks.</summary>
internal sealed class BenchmarkOptions
{
    private readonly Option<Shape[]> _shapes = new("--shapes")
    {
        Description = "Shapes to measure, each as batch,num_heads,num_kv_heads,tokens.",
        HelpName = "B,H,KV,T",
        AllowMultipleArgumentsPerToken = true,
        CustomParser = result => [.. result.Tokens.Select(token => ParseShape(token.Value, result))],
        DefaultValueFactory = _ => [new(1, 32, 8, 8192), new(1, 32, 8, 32768), new(1, 8, 8, 8192)],
    };

    private readonly Option<int[]> _groups = new("--groups")
    {
        Description = "Query heads per KV head.",
        HelpName = "N",
        AllowMultipleArgumentsPerToken = true,
        DefaultValueFactory = _ => [8],
    };

    private readonly Option<ScalarType[]> _dtypes = new("--dtypes")
    {
        Description = "float32, float16, bfloat16.",
        HelpName = "DTYPE",
        AllowMultipleArgumentsPerToken = true,
        DefaultValueFactory = _ => [ScalarType.BFloat16, ScalarType.Float16, ScalarType.Float32],
    };

    private readonly Option<Kept[]> _keeps = new("--keep")
    {
        Description = "Number of channels kept of each key and value; a leading b means balanced patterns, a trailing :8 or :4 the bits. The value of --head-dim keeps all.",
        HelpName = "[b]N[:BITS]",
        AllowMultipleArgumentsPerToken = true,
        CustomParser = result => [.. result.Tokens.Select(token => ParseKept(token.Value, result))],
        DefaultValueFactory = _ => [new(40, false), new(64, false)],
    };

    private readonly Option<Device> _device = new("--device")
    {
        Description = "cpu, cuda or cuda:N.",
        DefaultValueFactory = _ => CPU,
        HelpName = "DEVICE",
        CustomParser = ParseDevice,
    };

    private readonly Option<int> _headDim = new("--head-dim") { Description = "Channels of a head.", DefaultValueFactory = _ => 128 };

    private readonly Option<string?> _model = new("--model")
    {
        Description = "Folder of a Hugging Face checkpoint whose heads and head_dim replace those of --shapes and --head-dim.",
        HelpName = "DIR",
    };

    private readonly Option<int> _threads = new("--threads")
    {
        Description = "CPU threads.",
        DefaultValueFactory = _ => Environment.ProcessorCount,
    };

    private readonly Option<double> _seconds = new("--seconds")
    {
        Description = "Time to spend on each measurement.",
        DefaultValueFactory = _ => 1.0,
    };

    private readonly Option<DirectoryInfo?> _output = new("--output") { Description = "Folder for results as CSV, Markdown and a chart.", HelpName = "DIR" };

    internal Option<Kept[]> Keep => _keeps;

    internal Option<Device> Device => _device;

    internal Option<int> Threads => _threads;

    internal Option<DirectoryInfo?> Output => _output;

    /// <summary>A command that measures given shapes, or with <paramref name="grid"/> those of its own grid.</summary>
    internal Command Command(string name, string description, Action<Settings> run, bool grid = false)
    {
        Command command = new(name, description) { grid ? _groups : _shapes, _dtypes, _keeps, _headDim, _device, _threads, _seconds, _output };
        if (!grid)
        {
            command.Add(_model);
        }

        command.SetAction(parsed =>
        {
            LlamaConfig? model = null;
            if (!grid && parsed.GetValue(_model) is string directory)
            {
                try
                {
                    model = LlamaConfig.Load(Path.Combine(directory, "config.json"));
                }
                catch (Exception exception) when (exception is IOException or UnauthorizedAccessException or NotSupportedException)
                {
                    Console.Error.WriteLine(exception.Message);
                    return 1;
                }
            }

            Shape[] shapes = grid ? [] : parsed.GetRequiredValue(_shapes);
            Settings settings = new(
                model is null ? shapes : [.. shapes.Select(shape => shape with { NumHeads = model.NumHeads, NumKvHeads = model.NumKvHeads }).Distinct()],
                grid ? parsed.GetRequiredValue(_groups) : [], parsed.GetRequiredValue(_dtypes), parsed.GetRequiredValue(_keeps),
                model?.HeadDim ?? parsed.GetRequiredValue(_headDim), parsed.GetRequiredValue(_device), parsed.GetRequiredValue(_threads),
                parsed.GetRequiredValue(_seconds), parsed.GetValue(_output));
            if (settings.Keeps.FirstOrDefault(keep => !IsPossible(keep, settings.HeadDim)) is Kept impossible)
            {
                Console.Error.WriteLine(
                    $"Expected --keep of at most {settings.HeadDim}, the head_dim, or b with 5 to 8 sixteenths of it, but got {impossible}.");
                return 1;
            }

            run(settings);
            return 0;
        });
        return command;
    }

    private static Device ParseDevice(ArgumentResult result)
    {
        string text = result.Tokens[0].Value;
        bool named = text is "cpu" or "cuda"
            || (text.StartsWith("cuda:", StringComparison.Ordinal) && int.TryParse(text[5..], NumberStyles.None, CultureInfo.InvariantCulture, out _));
        if (!named)
        {
            result.AddError($"Expected cpu, cuda or cuda:N, but got '{text}'.");
        }
        else if (text != "cpu" && !cuda_is_available())
        {
            result.AddError($"torch finds no CUDA device for --device {text}.");
        }
        else
        {
            return device(text);
        }

        return CPU;
    }

    // The cache's options would round a number that they can't keep exactly.
    private static bool IsPossible(Kept keep, int headDim) => keep.Balanced
        ? headDim is 64 or 128 or 256 && keep.Channels * 16 % headDim == 0 && keep.Channels * 16 / headDim is >= 5 and <= 8
        : keep.Channels <= headDim;

    private static Kept ParseKept(string text, ArgumentResult result)
    {
        bool balanced = text.StartsWith('b');
        string[] parts = (balanced ? text[1..] : text).Split(':');
        int bits = parts switch { [_] => 16, [_, "8"] => 8, [_, "4"] => 4, _ => 0 };
        if (bits > 0 && int.TryParse(parts[0], NumberStyles.None, CultureInfo.InvariantCulture, out int channels) && channels > 0)
        {
            return new Kept(channels, balanced, bits);
        }

        result.AddError($"Expected a number of channels with an optional leading b and an optional trailing :8 or :4, but got '{text}'.");
        return new Kept(1, false);
    }

    private static Shape ParseShape(string text, ArgumentResult result)
    {
        string[] parts = text.Split(',');
        int[] numbers = new int[4];
        bool valid = parts.Length == 4;
        for (int i = 0; valid && i < 4; i++)
        {
            valid = int.TryParse(parts[i], NumberStyles.None, CultureInfo.InvariantCulture, out numbers[i]) && numbers[i] > 0;
        }

        if (!valid || numbers[1] % numbers[2] != 0)
        {
            result.AddError($"Expected batch,num_heads,num_kv_heads,tokens with num_heads a multiple of num_kv_heads, but got '{text}'.");
            return new Shape(1, 1, 1, 1);
        }

        return new Shape(numbers[0], numbers[1], numbers[2], numbers[3]);
    }
}
