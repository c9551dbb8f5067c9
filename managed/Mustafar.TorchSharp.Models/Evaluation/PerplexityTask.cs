using System.Text.Json.Nodes;
using Mustafar.Models.Generation;
using Mustafar.Models.Llama;
using TorchSharp;
using static TorchSharp.torch;

namespace Mustafar.Models.Evaluation;

/// <summary>
/// Perplexity, divergence from the dense model, and bytes. The beginning of each window of a text is the prompt; the rest is decoded token
/// by token with the true tokens, so that every prediction reads the cache as it is during decode.
/// </summary>
/// <remarks>
/// The dense model's predictions come from one pass over each whole window, whose hidden states are kept while the window is decoded. The
/// divergence of the dense setting is therefore rounding error, and no other setting can get below it.
/// </remarks>
public sealed class PerplexityTask : EvaluationTask
{
    private readonly List<List<int>> _windows;
    private readonly int _prefill;
    private readonly int _batch;
    private readonly int _step;
    private readonly bool _comparesWithDense;
    private readonly string _textHash;

    // The dense model's hidden states, kept for all settings if the task has a single part.
    private Tensor? _reference;

    /// <summary>Makes a task.</summary>
    /// <param name="language">The model.</param>
    /// <param name="text">The text to predict.</param>
    /// <param name="context">Number of tokens in a window.</param>
    /// <param name="prefill">Number of tokens of a window that are its prompt, 1 to <paramref name="context"/> − 1.</param>
    /// <param name="windows">Maximum number of windows to measure; null for all of the text.</param>
    /// <param name="batch">Number of windows decoded in one batch.</param>
    /// <param name="step">Number of tokens decoded at once. The tokens of one step see each other uncompressed; with a few instead of 1,
    /// the results are nearly the same and take a fraction of the time.</param>
    /// <param name="comparesWithDense">Whether to measure the divergence from the dense model, which is then run too.</param>
    /// <exception cref="ArgumentException">The text is shorter than a window, or a window does not fit the model.</exception>
    public PerplexityTask(
        LanguageModel language,
        string text,
        int context = 2048,
        int prefill = 512,
        int? windows = null,
        int batch = 11,
        int step = 1,
        bool comparesWithDense = true)
        : base("perplexity", language)
    {
        ArgumentNullException.ThrowIfNull(text);
        ArgumentOutOfRangeException.ThrowIfLessThan(prefill, 1);
        ArgumentOutOfRangeException.ThrowIfGreaterThanOrEqual(prefill, context);
        ArgumentOutOfRangeException.ThrowIfNegativeOrZero(batch);
        ArgumentOutOfRangeException.ThrowIfNegativeOrZero(step);
        ArgumentOutOfRangeException.ThrowIfLessThan(windows ?? 1, 1, nameof(windows));
        _windows = TextWindows.Of(language.Tokenizer, text, context);
        if (_windows.Count == 0)
        {
            throw new ArgumentException($"Expected a text of at least {context} tokens, one window, but it is shorter.", nameof(text));
        }

        TokenIds.Check(_windows[0], language.Model.Config);
        _windows = [.. _windows.Take(windows ?? _windows.Count)];
        (_prefill, _batch, _step, _comparesWithDense, _textHash) = (prefill, batch, step, comparesWithDense, TextWindows.HashOf(text));
        Metric[] divergence =
        [
            new("kl_mean", "KL divergence, mean (nats)", "F5"),
            new("kl_p99", "KL divergence, 99th percentile", "F4"),
            new("same_likeliest", "same likeliest token", "P1"),
        ];
        Metrics = [new("perplexity", "perplexity", "F3"), .. comparesWithDense ? divergence : [], new("bytes_ratio", "bytes of dense fp16", "P1")];
    }

    /// <inheritdoc/>
    public override IReadOnlyList<Metric> Metrics { get; }

    /// <inheritdoc/>
    public override int Parts => (_windows.Count + _batch - 1) / _batch;

    /// <inheritdoc/>
    public override JsonObject Inputs
    {
        get
        {
            JsonObject inputs = new()
            {
                ["text_sha256"] = _textHash, ["context"] = _windows[0].Count, ["prefill"] = _prefill, ["windows"] = _windows.Count, ["batch"] = _batch,
            };
            if (_step > 1)
            {
                inputs["step"] = _step;
            }

            if (!_comparesWithDense)
            {
                inputs["compares_with_dense"] = false;
            }

            return inputs;
        }
    }

    /// <summary>Number of windows that are measured.</summary>
    internal int Windows => _windows.Count;

    /// <inheritdoc/>
    public override long TokensOf(int part) => WindowsOf(part).Sum(window => (long)window.Count);

    /// <inheritdoc/>
    public override JsonNode MeasurePart(CacheSetting setting, int part, IProgress<double> progress, CancellationToken cancellationToken) =>
        Measure(setting, part, progress, cancellationToken).Result;

    /// <summary>Measures a part; also returns how many tokens its cache holds at the end, and the memory that it takes.</summary>
    /// <inheritdoc cref="MeasurePart"/>
    internal (JsonNode Result, int Tokens, KeyValueCacheMemory Memory) Measure(
        CacheSetting setting, int part, IProgress<double> progress, CancellationToken cancellationToken)
    {
        ArgumentNullException.ThrowIfNull(setting);
        ArgumentNullException.ThrowIfNull(progress);
        List<int>[] windows = [.. WindowsOf(part)];
        LlamaForCausalLM model = Language.Model;
        using IDisposable mode = inference_mode();
        using DisposeScope scope = NewDisposeScope();
        Tensor ids = TokenIds.ToTensor(windows, model.Device);
        Tensor? reference = _comparesWithDense ? Reference(ids, cancellationToken) : null;
        using ModelCache cache = setting.NewCache(model, windows.Length);
        int tokens = windows[0].Count;
        Tensor first = model.NextTokenLogits(ids.narrow(1, 0, _prefill), cache, cancellationToken: cancellationToken).unsqueeze(1);
        List<Tensor> nll = [TeacherForcing.OfToken(first, ids.narrow(1, _prefill, 1))], divergence = [], same = [];

        // No divergence for the first token: its prediction comes from the prompt, whose attention is always dense.
        TeacherForcing.Decode(
            model,
            cache,
            ids,
            _prefill,
            _step,
            (i, logits) =>
            {
                long count = logits.shape[1];
                nll.Add(TeacherForcing.OfToken(logits, ids.narrow(1, i, count)).MoveToOuterDisposeScope());
                if (reference is not null)
                {
                    Tensor expected = model.Head(reference.narrow(1, i - _prefill, count));
                    divergence.Add(TeacherForcing.Divergence(expected, logits).MoveToOuterDisposeScope());
                    same.Add(expected.argmax(-1).eq(logits.argmax(-1)).MoveToOuterDisposeScope());
                }

                progress.Report((double)(i + count) / tokens);
            },
            cancellationToken);
        JsonObject result = new()
        {
            ["nll"] = Array(cat(nll, 1)),
            ["kl"] = Array(divergence.Count == 0 ? zeros(0) : cat(divergence, 1)),
            ["same"] = same.Count == 0 ? 0L : cat(same, 1).sum().item<long>(),
            ["bytes"] = CacheSetting.UsedBytes(cache),
            ["dense_fp16_bytes"] = cache.Memory.Fp16Bytes,
        };
        return (result, cache.Length, cache.Memory);
    }

    /// <inheritdoc/>
    public override TaskResult Summarize(IReadOnlyList<JsonNode> parts)
    {
        ArgumentNullException.ThrowIfNull(parts);
        double[] nll = Numbers(parts, "nll");
        double[] kl = Numbers(parts, "kl");
        long bytes = parts.Sum(part => (long)part["bytes"]!);
        long dense = parts.Sum(part => (long)part["dense_fp16_bytes"]!);
        double mean = nll.Average();
        double[] ofWindows = [.. nll.Chunk(nll.Length / _windows.Count).Select(window => window.Average())];
        Dictionary<string, double> metrics = new()
        {
            ["perplexity"] = Math.Exp(mean),
            ["mean_nll"] = mean,
            ["bytes"] = bytes,
            ["bytes_ratio"] = (double)bytes / dense,
        };
        if (kl.Length > 0)
        {
            metrics["kl_mean"] = kl.Average();
            metrics["kl_p99"] = Percentile(kl, 0.99);
            metrics["same_likeliest"] = (double)parts.Sum(part => (long)part["same"]!) / kl.Length;
        }

        return new TaskResult(metrics, new JsonObject
        {
            ["predicted_tokens"] = nll.Length,
            ["window_nll"] = new JsonArray([.. ofWindows.Select(JsonNumber.Of)]),
        });
    }

    /// <summary>The smallest of the numbers that at least the given share of them does not exceed.</summary>
    internal static double Percentile(IReadOnlyCollection<double> numbers, double share) =>
        numbers.Order().ElementAt(Math.Max(0, (int)Math.Ceiling(share * numbers.Count) - 1));

    private IEnumerable<List<int>> WindowsOf(int part) => _windows.Skip(part * _batch).Take(_batch);

    // The same for all settings, but kept only if there is a single part.
    private Tensor Reference(Tensor ids, CancellationToken cancellationToken)
    {
        if (Parts > 1)
        {
            return DenseStates(ids, cancellationToken);
        }

        return _reference ??= DenseStates(ids, cancellationToken).DetachFromDisposeScope();
    }

    // The dense model's hidden states at the positions that predict tokens prefill, prefill + 1, …: [batch, tokens − prefill, hidden_size].
    // Computed window by window, so that the memory of a pass does not grow with the batch.
    private Tensor DenseStates(Tensor ids, CancellationToken cancellationToken)
    {
        using DisposeScope scope = NewDisposeScope();
        List<Tensor> states = [];
        for (int b = 0; b < ids.shape[0]; b++)
        {
            using DisposeScope window = NewDisposeScope();
            using ModelCache cache = ModelCache.Dense(Language.Model);
            Tensor hidden = Language.Model.Hidden(ids.narrow(0, b, 1), cache, cancellationToken: cancellationToken);
            states.Add(hidden.narrow(1, _prefill - 1, hidden.shape[1] - _prefill).clone().MoveToOuterDisposeScope());
        }

        return cat(states, 0).MoveToOuterDisposeScope();
    }

    private static JsonArray Array(Tensor tensor)
    {
        using Tensor numbers = tensor.to(ScalarType.Float32).cpu().contiguous();
        return new JsonArray([.. numbers.data<float>().ToArray().Select(value => JsonNumber.Of(value))]);
    }

    private static double[] Numbers(IReadOnlyList<JsonNode> parts, string key) =>
        [.. parts.SelectMany(part => part[key]!.AsArray()).Select(JsonNumber.Read)];
}
