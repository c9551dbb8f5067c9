using Mustafar.Examples.Llama.Checkpoint;
using Mustafar.Examples.Llama.Model;
using Mustafar.Examples.Llama.Tokenizer;
using static TorchSharp.torch;

namespace Mustafar.Examples.Llama.Commands;

/// <summary>A loaded checkpoint, and the caches that the command line asks for.</summary>
internal sealed class ModelSession : IDisposable
{
    // A rotary table that older checkpoints carry; it follows from the config.
    private const string DerivedSuffix = ".rotary_emb.inv_freq";

    // Of a model whose head is its embedding, some checkpoints hold both.
    private const string Head = "lm_head.weight";

    private ModelSession(CommonSettings settings, LlamaForCausalLM model, TextTokenizer tokenizer, IReadOnlySet<int> stopTokens)
    {
        Settings = settings;
        Model = model;
        Tokenizer = tokenizer;
        StopTokens = stopTokens;
    }

    /// <summary>What the command line asks for.</summary>
    public CommonSettings Settings { get; }

    /// <summary>The model.</summary>
    public LlamaForCausalLM Model { get; }

    /// <summary>Its tokenizer.</summary>
    public TextTokenizer Tokenizer { get; }

    /// <summary>Tokens that end a text.</summary>
    public IReadOnlySet<int> StopTokens { get; }

    /// <summary>Loads a checkpoint.</summary>
    public static ModelSession Load(CommonSettings settings, ConsoleOutput output)
    {
        if (settings.Threads is int threads)
        {
            set_num_threads(threads);
        }

        if (!Directory.Exists(settings.Model))
        {
            throw new CommandException($"--model: the directory '{settings.Model}' doesn't exist.");
        }

        LlamaConfig config = LlamaConfig.Load(Path.Combine(settings.Model, "config.json"));
        TextTokenizer tokenizer = TextTokenizer.Load(settings.Model);
        if (tokenizer.VocabSize > config.VocabSize)
        {
            throw new CheckpointException(
                $"expected ids below {config.VocabSize}, the model's vocab_size, but the tokenizer's go up to {tokenizer.VocabSize - 1}.",
                settings.Model);
        }

        IReadOnlySet<int> stopTokens = Generation.StopTokens.Load(settings.Model, config);
        using SafetensorsCheckpoint checkpoint = SafetensorsCheckpoint.Open(settings.Model);
        LlamaForCausalLM model = new(config, settings.DType ?? config.DType, settings.Device);
        try
        {
            IReadOnlyList<string> unused = output.WithProgress("Loading", progress => CheckpointLoader.Load(model, checkpoint, progress));
            string[] unexpected = [.. unused.Where(name => !name.EndsWith(DerivedSuffix, StringComparison.Ordinal)
                && !(name == Head && config.TieWordEmbeddings))];
            if (unexpected.Length > 0)
            {
                output.Message($"warning: {unexpected.Length} tensors of the checkpoint are not used: {string.Join(", ", unexpected.Take(5))}");
            }
        }
        catch
        {
            model.Dispose();
            throw;
        }

        return new ModelSession(settings, model, tokenizer, stopTokens);
    }

    /// <summary>Makes the empty caches that the command line asks for.</summary>
    /// <param name="batchSize">Number of sequences.</param>
    public ModelCache NewCache(int batchSize = 1) => NewCache(Settings.Attention, batchSize);

    /// <summary>Makes empty caches.</summary>
    /// <param name="attention">Their kind.</param>
    /// <param name="batchSize">Number of sequences.</param>
    public ModelCache NewCache(AttentionKind attention, int batchSize = 1) => attention == AttentionKind.Dense
        ? ModelCache.Dense(Model, batchSize)
        : ModelCache.Mustafar(Model, Settings.Options, batchSize);

    /// <summary>The id that begins a text.</summary>
    /// <exception cref="CommandException">The tokenizer has none.</exception>
    public int BeginningOfText => Tokenizer.Prefix.Count > 0
        ? Tokenizer.Prefix[0]
        : throw new CommandException("This command needs a tokenizer with a token that begins a text, but this one has none.");

    /// <inheritdoc/>
    public void Dispose() => Model.Dispose();
}
