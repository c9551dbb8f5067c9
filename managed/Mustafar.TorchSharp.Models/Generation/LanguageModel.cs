using Mustafar.Models.Checkpoint;
using Mustafar.Models.Llama;
using Mustafar.Models.Tokenizer;
using static TorchSharp.torch;

namespace Mustafar.Models.Generation;

/// <summary>A loaded checkpoint: the model, its tokenizer and the tokens that end a text.</summary>
/// <example>
/// <code>
/// using LanguageModel language = LanguageModel.Load(directory);
/// using ModelCache cache = ModelCache.Mustafar(language.Model, MustafarPresets.HalfInFourBits);
/// foreach (string part in language.Generate("def main():", cache, maxTokens: 20, SamplingParameters.Greedy))
/// {
///     Console.Write(part);
/// }
/// </code>
/// </example>
public sealed class LanguageModel : IDisposable
{
    // A rotary table in older checkpoints, which follows from the config.
    private const string DerivedSuffix = ".rotary_emb.inv_freq";

    // If the head is the embedding, some checkpoints contain both.
    private const string Head = "lm_head.weight";

    private readonly TextTokenizer? _tokenizer;

    private LanguageModel(
        string directory,
        string fingerprint,
        LlamaForCausalLM model,
        TextTokenizer? tokenizer,
        IReadOnlySet<int> stopTokens,
        SamplingParameters sampling,
        IReadOnlyList<string> unused)
    {
        Directory = directory;
        Fingerprint = fingerprint;
        Model = model;
        _tokenizer = tokenizer;
        StopTokens = stopTokens;
        Sampling = sampling;
        UnusedTensors = unused;
    }

    /// <summary>Directory of the checkpoint.</summary>
    public string Directory { get; }

    /// <summary>Identifies the checkpoint: <see cref="ModelFingerprint"/>.</summary>
    public string Fingerprint { get; }

    /// <summary>The model.</summary>
    public LlamaForCausalLM Model { get; }

    /// <summary>Its tokenizer.</summary>
    /// <exception cref="InvalidOperationException">The model was loaded without it.</exception>
    public TextTokenizer Tokenizer => _tokenizer ?? throw new InvalidOperationException("The model was loaded without its tokenizer.");

    /// <summary>Tokens that end a text.</summary>
    public IReadOnlySet<int> StopTokens { get; }

    /// <summary>How tokens are chosen if the caller doesn't say: <see cref="GenerationConfig.Sampling"/>.</summary>
    public SamplingParameters Sampling { get; }

    /// <summary>Tensors of the checkpoint that the model doesn't use; usually a sign that it is of another kind.</summary>
    public IReadOnlyList<string> UnusedTensors { get; }

    /// <summary>Loads a checkpoint.</summary>
    /// <param name="directory">A Hugging Face checkpoint: config.json, safetensors, tokenizer.json or tokenizer.model.</param>
    /// <param name="dtype">Type of the weights and of the caches; the checkpoint's if null.</param>
    /// <param name="device">Device of the model; the CPU if null.</param>
    /// <param name="progress">Receives the share of bytes loaded, 0 to 1.</param>
    /// <param name="frame">Whether bos_token and eos_token are added to a text; as the tokenizer's files say if null.</param>
    /// <param name="withTokenizer">Whether to read the tokenizer; without it, the model only takes and returns ids.</param>
    /// <param name="cancellationToken">Cancels before the next tensor.</param>
    /// <exception cref="IOException">A file is missing or damaged.</exception>
    /// <exception cref="UnsupportedModelException">The checkpoint needs a feature that is not implemented.</exception>
    /// <exception cref="OperationCanceledException">The call was cancelled.</exception>
    public static LanguageModel Load(
        string directory,
        ScalarType? dtype = null,
        Device? device = null,
        IProgress<double>? progress = null,
        TextFrame? frame = null,
        bool withTokenizer = true,
        CancellationToken cancellationToken = default)
    {
        ArgumentNullException.ThrowIfNull(directory);
        CheckpointDirectory.Check(directory);
        string configFile = Path.Combine(directory, "config.json");
        LlamaConfig config = LlamaConfig.Load(configFile);
        IReadOnlySet<int> stopTokens = Generation.StopTokens.Load(directory, config);
        SamplingParameters sampling = GenerationConfig.Load(directory).Sampling;
        TextTokenizer? tokenizer = withTokenizer ? TextTokenizer.Load(directory, frame) : null;
        tokenizer?.LimitIds(config.VocabSize, directory);
        using SafetensorsCheckpoint checkpoint = SafetensorsCheckpoint.Open(directory);
        CheckpointShapes.Check(config, checkpoint);
        if (tokenizer is not null)
        {
            // A token that ends a text has no text itself: it is never written.
            config = config with
            {
                UnusedTokenIds = [.. Enumerable.Range(0, config.VocabSize).Where(id => !tokenizer.HasToken(id) && !stopTokens.Contains(id))],
            };
        }

        LlamaForCausalLM model = new(config, dtype ?? config.DType, device);
        try
        {
            IReadOnlyList<string> unused = [.. CheckpointLoader.Load(model, checkpoint, progress, cancellationToken)
                .Where(name => !name.EndsWith(DerivedSuffix, StringComparison.Ordinal) && !(name == Head && config.TieWordEmbeddings))];
            string fingerprint = ModelFingerprint.Of(configFile, checkpoint);
            return new LanguageModel(directory, fingerprint, model, tokenizer, stopTokens, sampling, unused);
        }
        catch
        {
            model.Dispose();
            throw;
        }
    }

    /// <summary>Continues a text until a stop token, a stop sequence, the maximum number of tokens, or the model's context
    /// length.</summary>
    /// <remarks><see cref="TokenGenerator"/> continues several texts at once, or a text that is already cached; <see cref="BeamSearch"/>
    /// and <see cref="BestOf"/> search for the likeliest continuations.</remarks>
    /// <param name="prompt">The text.</param>
    /// <param name="cache">An empty cache of the model, of batch size 1. Afterwards it holds the prompt and the generated tokens but the
    /// last; <see cref="ModelCache.Clear"/> prepares it for another text.</param>
    /// <param name="maxTokens">Maximum number of tokens to generate.</param>
    /// <param name="sampling">How tokens are chosen; <see cref="Sampling"/> if null.</param>
    /// <param name="stopSequences">Texts that end the continuation and are not part of it; none if null.</param>
    /// <param name="cancellationToken">Cancels before the next token, or while the prompt is read; nothing of it is cached then.</param>
    /// <returns>The parts of the continuation, each as soon as it is known. They are generated as they are read.</returns>
    /// <exception cref="ArgumentException">The cache is not empty or has a different batch size, the prompt has no tokens or does not fit into
    /// the model, or a stop sequence is empty.</exception>
    /// <exception cref="InvalidOperationException">The model was loaded without its tokenizer.</exception>
    /// <exception cref="OperationCanceledException">The call was cancelled; thrown while the parts are read.</exception>
    public IEnumerable<string> Generate(
        string prompt,
        ModelCache cache,
        int maxTokens,
        SamplingParameters? sampling = null,
        IReadOnlyList<string>? stopSequences = null,
        CancellationToken cancellationToken = default)
    {
        ArgumentNullException.ThrowIfNull(prompt);
        ArgumentNullException.ThrowIfNull(cache);
        if (cache.BatchSize != 1 || cache.Positions[0] != 0)
        {
            throw new ArgumentException(
                $"Expected an empty cache of one sequence, but got {cache.BatchSize} with up to {cache.Positions.Max()} tokens.", nameof(cache));
        }

        StopSequences.Check(stopSequences, nameof(stopSequences));
        List<int> ids = Tokenizer.Encode(prompt, cancellationToken: cancellationToken);
        IEnumerable<int> tokens = new TokenGenerator(Model, cache).Generate(
            ids, new Sampler(sampling ?? Sampling), maxTokens, StopTokens, cancellationToken);
        return new GeneratedText(Tokenizer, StopTokens, stopSequences ?? [], continuesText: true).Read(tokens);
    }

    /// <inheritdoc/>
    public void Dispose() => Model.Dispose();
}
