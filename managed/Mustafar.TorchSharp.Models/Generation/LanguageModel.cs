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
/// TokenGenerator generator = new(language.Model, cache);
/// List&lt;int&gt; prompt = language.Tokenizer.Encode("def main():");
/// IEnumerable&lt;int&gt; tokens = generator.Generate(prompt, new Sampler(SamplingParameters.Greedy), maxTokens: 20, language.StopTokens);
/// Console.WriteLine(language.Tokenizer.Decode(tokens));
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
        IReadOnlyList<string> unused)
    {
        Directory = directory;
        Fingerprint = fingerprint;
        Model = model;
        _tokenizer = tokenizer;
        StopTokens = stopTokens;
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
            return new LanguageModel(directory, fingerprint, model, tokenizer, stopTokens, unused);
        }
        catch
        {
            model.Dispose();
            throw;
        }
    }

    /// <inheritdoc/>
    public void Dispose() => Model.Dispose();
}
