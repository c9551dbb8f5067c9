using System.CommandLine;
using System.Globalization;
using Mustafar.Models.Checkpoint;
using Mustafar.Models.Evaluation;
using Mustafar.Models.Tokenizer;
using TorchSharp;
using static TorchSharp.torch;

namespace Mustafar.Examples.Llama.Commands;

/// <summary>Options common to all commands.</summary>
internal sealed class CommonOptions
{
    private readonly Option<string> _model = CommandOption.Text(
        "--model", "Directory of a Hugging Face checkpoint.", ShippedFiles.Model, "DIR");

    private readonly Option<string> _attention = CommandOption.Choice(
        "--attention", "Whether attention reads a compressed (mustafar) or a dense cache.", "mustafar", "dense");

    private readonly Option<double> _keySparsity = CommandOption.Number(
        "--key-sparsity", "Share of each key's channels to prune; 0 keeps all.", "0..1", new MustafarOptions().KeySparsity);

    private readonly Option<double> _valueSparsity = CommandOption.Number(
        "--value-sparsity", "Share of each value's channels to prune; 0 keeps all.", "0..1", new MustafarOptions().ValueSparsity);

    private readonly Option<bool> _balancedKeys = new("--balanced-keys")
    {
        Description = "Prune keys to a balanced pattern (at most 2 of 4 channels), which sparse tensor cores read.",
    };

    private readonly Option<bool> _balancedValues = new("--balanced-values")
    {
        Description = "Prune values to a balanced pattern.",
    };

    private readonly Option<string> _keySelection = CommandOption.Choice(
        "--key-selection", "How the kept channels of keys are chosen.", [.. KeySelection.All.Select(selection => selection.Name)]);

    private readonly Option<string> _valueSelection = CommandOption.Choice(
        "--value-selection", "How the kept channels of values are chosen.", [.. ValueSelection.All.Select(selection => selection.Name)]);

    private readonly Option<int> _keyBits = CommandOption.Number(
        "--key-bits", "Bits per stored number of a key: 16 (not quantised), 8 or 4.", "BITS", new MustafarOptions().KeyBits);

    private readonly Option<int> _valueBits = CommandOption.Number(
        "--value-bits", "Bits per stored number of a value: 16 (not quantised), 8 or 4.", "BITS", new MustafarOptions().ValueBits);

    private readonly Option<bool> _keyRotation = new("--key-rotation")
    {
        Description = "Rotate 8- or 4-bit keys by a Hadamard matrix; needs --key-sparsity 0 and a head_dim of 64, 128 or 256.",
    };

    private readonly Option<string> _keyChannelScales = CommandOption.Choice(
        "--key-channel-scales", "Whether 8- or 4-bit keys have channel scales; auto: only 4-bit keys.", "auto", "yes", "no");

    private readonly Option<int> _localWindow = CommandOption.Number(
        "--local-window", "Size of the recent window, whose tokens stay dense.", "TOKENS", new MustafarOptions().LocalWindow);

    private readonly Option<int> _sinks = CommandOption.Number(
        "--sinks",
        "Attention sinks: first tokens that stay dense and stay visible outside a sliding window.",
        "TOKENS",
        new MustafarOptions().SinkTokens);

    private readonly Option<int> _groupSize = CommandOption.Number(
        "--group-size", "Tokens that are compressed together, a multiple of 32.", "TOKENS", new MustafarOptions().GroupSize);

    private readonly Option<string> _eviction = CommandOption.Choice(
        "--eviction", "Which tokens stay in a cache of --capacity tokens.", ["none", .. EvictionSetting.Methods]);

    private readonly Option<int?> _capacity = CommandOption.Number<int>(
        "--capacity", "Tokens that a sequence keeps in the cache; needs --eviction.", "TOKENS");

    private readonly Option<string?> _cacheSettings = new("--cache-settings")
    {
        Description = "JSON file with one cache setting, for all layers or for each, as recommend writes it; the other options set what it leaves out.",
        HelpName = "FILE",
    };

    private readonly Option<string> _device = CommandOption.Text("--device", "cpu, cuda or cuda:N.", "cpu", "DEVICE");

    private readonly Option<string> _dtype = CommandOption.Choice(
        "--dtype", "Data type of the weights and the cache; auto: the checkpoint's.", "auto", "float32", "float16", "bfloat16");

    private readonly Option<string> _addBos = CommandOption.Choice(
        "--add-bos", "Whether to put bos_token before a text; auto: as the tokenizer's files say.", "auto", "yes", "no");

    private readonly Option<string> _addEos = CommandOption.Choice(
        "--add-eos", "Whether to put eos_token after a text; auto: as the tokenizer's files say.", "auto", "yes", "no");

    private readonly Option<int?> _threads = CommandOption.Number<int>("--threads", "CPU threads; default: all cores.", "N");

    private readonly Option<bool> _json = new("--json")
    {
        Description = "Print one JSON object to standard output, and everything else to standard error.",
    };

    /// <summary>Adds these options to a command.</summary>
    public void AddTo(Command command)
    {
        foreach (Option option in (Option[])
        [
            _model, _attention, _keySparsity, _valueSparsity, _balancedKeys, _balancedValues, _keySelection, _valueSelection, _keyBits, _valueBits,
            _keyChannelScales, _keyRotation, _localWindow, _sinks, _groupSize, _eviction, _capacity, _cacheSettings, _device, _dtype, _addBos, _addEos,
            _threads, _json,
        ])
        {
            command.Options.Add(option);
        }
    }

    /// <summary>Whether a file configures the cache.</summary>
    public bool HasCacheFile(ParseResult result) => result.GetValue(_cacheSettings) is not null;

    /// <summary>Whether to print the result as JSON.</summary>
    public bool WantsJson(ParseResult result) => result.GetValue(_json);

    /// <summary>The options' values.</summary>
    /// <exception cref="CommandException">A value is not valid.</exception>
    public CommonSettings Read(ParseResult result)
    {
        int? threads = result.GetValue(_threads);
        if (threads is < 1)
        {
            throw new CommandException($"--threads: expected at least 1, but got {threads}.");
        }

        string model = result.GetRequiredValue(_model);
        try
        {
            CheckpointDirectory.Check(model);
        }
        catch (IOException exception)
        {
            throw new CommandException($"{_model.Name}: {exception.Message}");
        }

        return new CommonSettings(
            model,
            result.GetRequiredValue(_attention) == "dense" ? AttentionKind.Dense : AttentionKind.Mustafar,
            ReadCache(result),
            ReadDevice(result.GetRequiredValue(_device)),
            result.GetRequiredValue(_dtype) switch
            {
                "float32" => ScalarType.Float32,
                "float16" => ScalarType.Float16,
                "bfloat16" => ScalarType.BFloat16,
                _ => null,
            },
            new TextFrame(YesOrNo(result.GetRequiredValue(_addBos)), YesOrNo(result.GetRequiredValue(_addEos))),
            threads);
    }

    private static bool? YesOrNo(string word) => word == "auto" ? null : word == "yes";

    private CacheSetting ReadCache(ParseResult result)
    {
        MustafarOptions options = ReadCacheOptions(result);
        if (result.GetValue(_cacheSettings) is not string file)
        {
            return new CacheSetting("mustafar", options);
        }

        IReadOnlyList<CacheSetting> settings = CacheSettingReader.Load(file, options);
        return settings.Count == 1
            ? settings[0]
            : throw new CommandException(
                $"{_cacheSettings.Name}: {file}: expected one setting, but there are {settings.Count}: {string.Join(", ", settings.Select(setting => setting.Name))}.");
    }

    private MustafarOptions ReadCacheOptions(ParseResult result)
    {
        MustafarOptions options = CacheOptions(result);
        bool? scales = YesOrNo(result.GetRequiredValue(_keyChannelScales));
        if (options is { KeyRotation: true, KeyBits: 16 } or { KeyRotation: true, KeySparsity: > 0 })
        {
            throw new CommandException(
                $"{_keyRotation.Name}: expected {_keyBits.Name} 8 or 4 and {_keySparsity.Name} 0 with it, but got {options.KeyBits} and {options.KeySparsity.ToString(CultureInfo.InvariantCulture)}.");
        }

        return scales is true && options.KeyBits == 16
            ? throw new CommandException($"{_keyChannelScales.Name}: expected {_keyBits.Name} 8 or 4 with yes, since only integers have scales, but got 16.")
            : scales is bool given ? options with { KeyChannelScales = given } : options;
    }

    private MustafarOptions CacheOptions(ParseResult result) => CommandOption.Made(
        () => new MustafarOptions
        {
            KeySparsity = result.GetValue(_keySparsity),
            ValueSparsity = result.GetValue(_valueSparsity),
            BalancedKeys = result.GetValue(_balancedKeys),
            BalancedValues = result.GetValue(_balancedValues),
            KeySelection = KeySelection.Named(result.GetRequiredValue(_keySelection)),
            ValueSelection = ValueSelection.Named(result.GetRequiredValue(_valueSelection)),
            KeyRotation = result.GetValue(_keyRotation),
            KeyBits = result.GetValue(_keyBits),
            ValueBits = result.GetValue(_valueBits),
            LocalWindow = result.GetValue(_localWindow),
            SinkTokens = result.GetValue(_sinks),
            GroupSize = result.GetValue(_groupSize),
            Eviction = ReadEviction(result),
        },
        (nameof(MustafarOptions.KeySparsity), _keySparsity),
        (nameof(MustafarOptions.ValueSparsity), _valueSparsity),
        (nameof(MustafarOptions.KeyBits), _keyBits),
        (nameof(MustafarOptions.ValueBits), _valueBits),
        (nameof(MustafarOptions.LocalWindow), _localWindow),
        (nameof(MustafarOptions.SinkTokens), _sinks),
        (nameof(MustafarOptions.GroupSize), _groupSize),
        ("capacity", _capacity));

    private TokenEviction? ReadEviction(ParseResult result)
    {
        string method = result.GetRequiredValue(_eviction);
        int? capacity = result.GetValue(_capacity);
        return method == "none" == capacity is null
            ? capacity is int tokens ? EvictionSetting.Of(method, tokens) : null
            : throw new CommandException($"expected {_eviction.Name} and {_capacity.Name} together, but got {(capacity is null ? _eviction.Name : _capacity.Name)} alone.");
    }

    private static Device ReadDevice(string text)
    {
        if (text == "cpu")
        {
            return CPU;
        }

        string[] parts = text.Split(':');
        int index = 0;
        bool isCuda = parts[0] == "cuda"
            && (parts.Length == 1 || (parts.Length == 2 && int.TryParse(parts[1], NumberStyles.None, CultureInfo.InvariantCulture, out index)));
        if (!isCuda)
        {
            throw new CommandException($"--device: expected cpu, cuda or cuda:N, but got '{text}'.");
        }

        if (!cuda.is_available())
        {
            throw new CommandException($"--device: '{text}' needs a CUDA device and a CUDA build of libtorch, but torch finds none.");
        }

        return index < cuda.device_count()
            ? new Device(DeviceType.CUDA, index)
            : throw new CommandException($"--device: '{text}' doesn't exist; torch finds {cuda.device_count()} CUDA device(s).");
    }
}
