using Mustafar.Models.Evaluation;
using Mustafar.Models.Generation;
using Mustafar.Models.Llama;
using Mustafar.Models.Tokenizer;
using static TorchSharp.torch;

namespace Mustafar.Examples.Llama.Commands;

/// <summary>A loaded checkpoint and the cache that the command line configures.</summary>
internal sealed class ModelSession : IDisposable
{
    private ModelSession(CommonSettings settings, LanguageModel language)
    {
        Settings = settings;
        Language = language;
    }

    /// <summary>The values on the command line.</summary>
    public CommonSettings Settings { get; }

    /// <summary>The checkpoint.</summary>
    public LanguageModel Language { get; }

    /// <summary>The model.</summary>
    public LlamaForCausalLM Model => Language.Model;

    /// <summary>Its tokenizer.</summary>
    public TextTokenizer Tokenizer => Language.Tokenizer;

    /// <summary>Tokens that end a text.</summary>
    public IReadOnlySet<int> StopTokens => Language.StopTokens;

    /// <summary>Loads a checkpoint.</summary>
    /// <param name="settings">The values on the command line.</param>
    /// <param name="output">Receives a warning about tensors that are not used.</param>
    /// <param name="withTokenizer">Whether the tokenizer is needed.</param>
    public static ModelSession Load(CommonSettings settings, ConsoleOutput output, bool withTokenizer = true)
    {
        if (settings.Threads is int threads)
        {
            set_num_threads(threads);
        }

        if (settings.Attention == AttentionKind.Mustafar)
        {
            // Checked before the weights are loaded, which may take minutes.
            string config = Path.Combine(settings.Model, "config.json");
            settings.Cache.CheckFits(LlamaConfig.Load(config), config);
        }

        LanguageModel language = output.WithProgress(
            "Loading", progress => LanguageModel.Load(settings.Model, settings.DType, settings.Device, progress, settings.Frame, withTokenizer));
        if (language.UnusedTensors is { Count: > 0 } unused)
        {
            output.Message($"warning: {unused.Count} tensors of the checkpoint are not used: {string.Join(", ", unused.Take(5))}");
        }

        return new ModelSession(settings, language);
    }

    /// <summary>Makes the empty cache that the command line configures.</summary>
    /// <param name="batchSize">Number of sequences.</param>
    public ModelCache NewCache(int batchSize = 1) => NewCache(Settings.Attention, batchSize);

    /// <summary>Makes an empty cache.</summary>
    /// <param name="attention">Its kind.</param>
    /// <param name="batchSize">Number of sequences.</param>
    /// <exception cref="CommandException">It is dense, and the command line sets attention sinks with a sliding window.</exception>
    public ModelCache NewCache(AttentionKind attention, int batchSize = 1) => CacheOf(attention).NewCache(Model, batchSize);

    /// <summary>The cache setting of a kind of attention.</summary>
    /// <param name="attention">The kind.</param>
    /// <exception cref="CommandException">It is dense, and the command line sets attention sinks with a sliding window.</exception>
    public CacheSetting CacheOf(AttentionKind attention)
    {
        if (attention == AttentionKind.Mustafar)
        {
            return Settings.Cache;
        }

        // Without a sliding window, dense attention sees the first tokens anyway.
        bool hasWindow = Enumerable.Range(0, Model.Config.NumLayers).Any(layer => Model.Config.WindowOf(layer) is not null);
        return Settings.Options.SinkTokens > 0 && hasWindow
            ? throw new CommandException(
                $"--sinks: dense attention has no attention sinks, and with the model's sliding window of {Model.Config.SlidingWindow} tokens "
                + "that makes a difference.")
            : CacheSetting.Dense;
    }

    /// <inheritdoc/>
    public void Dispose() => Language.Dispose();
}
