using System.Diagnostics.CodeAnalysis;
using Mustafar.Modules;
using TorchSharp;
using TorchSharp.Modules;
using static TorchSharp.torch;

namespace Mustafar;

/// <summary>
/// Self-attention of a decoder layer: projections and rotary positions, around any cache.
/// </summary>
/// <remarks>
/// With a <see cref="DenseCache"/> it is ordinary attention, with a cache that prunes and compresses it is Mustafar's. The children
/// <c>q_proj</c>, <c>k_proj</c>, <c>v_proj</c> and <c>o_proj</c>, and <c>q_norm</c> and <c>k_norm</c> if heads are normalised, have
/// the names of Hugging Face checkpoints. It is for inference: no gradient flows through the cache. Several threads may call <c>forward</c>
/// at once, each with its own cache, as long as none converts, loads or disposes the module.
/// </remarks>
/// <example>
/// <code>
/// MustafarAttentionOptions options = new() { HiddenSize = 512, NumHeads = 8, NumKvHeads = 2, HeadDim = 64 };
/// using RotaryEmbedding rotary = new(new RotaryOptions { HeadDim = 64, Theta = 500000 }); // shared by all layers
/// using MustafarAttention attention = new(options, rotary);
/// using MustafarCache cache = new(batchSize: 1, options.KeyValueShape, ScalarType.Float32);
///
/// Tensor hidden = attention.forward(randn(1, 100, 512), cache); // [batch, n, hidden_size]
/// hidden = attention.forward(randn(1, 1, 512), cache);
/// </code>
/// </example>
public sealed partial class MustafarAttention : nn.Module<Tensor, KeyValueCache, Tensor>
{
    private readonly RotaryEmbedding _rotary;
#pragma warning disable IDE1006 // the fields' names are the keys of the state dictionary
    private readonly nn.Module<Tensor, Tensor> q_proj;
    private readonly nn.Module<Tensor, Tensor> k_proj;
    private readonly nn.Module<Tensor, Tensor> v_proj;
    private readonly nn.Module<Tensor, Tensor> o_proj;
    private readonly nn.Module<Tensor, Tensor>? q_norm;
    private readonly nn.Module<Tensor, Tensor>? k_norm;
#pragma warning restore IDE1006

    /// <summary>Makes a layer with its own projections.</summary>
    /// <param name="options">Sizes.</param>
    /// <param name="rotary">Positions; may be shared by layers, and is not disposed with this one.</param>
    /// <param name="dtype">Type of the weights.</param>
    /// <param name="device">Device of the weights; the CPU if null.</param>
    /// <param name="initialize">Whether weights and biases are initialised like those of a new torch <c>Linear</c>. If false, their content
    /// is undefined until a checkpoint fills it, which saves time.</param>
    /// <exception cref="ArgumentException">The sizes don't fit together.</exception>
    public MustafarAttention(
        MustafarAttentionOptions options,
        RotaryEmbedding rotary,
        ScalarType dtype = ScalarType.Float32,
        Device? device = null,
        bool initialize = true)
        : this(Checked(options, rotary), rotary, InputProjections(options, dtype, device), dtype, device)
    {
        if (initialize)
        {
            foreach (nn.Module projection in (nn.Module[])[q_proj, k_proj, v_proj, o_proj])
            {
                Weights.Initialize((Linear)projection);
            }
        }
    }

    private MustafarAttention(
        MustafarAttentionOptions options, RotaryEmbedding rotary, Linear[] inputs, ScalarType dtype, Device? device)
        : this(
            options,
            rotary,
            inputs[0],
            inputs[1],
            inputs[2],
            Weights.Linear(options.NumHeads * options.HeadDim, options.HiddenSize, options.OutputBias, dtype, device),
            Norm(options, dtype, device),
            Norm(options, dtype, device))
    {
    }

    /// <summary>Makes a layer from given projections.</summary>
    /// <param name="options">Sizes; its bias flags and <see cref="MustafarAttentionOptions.QueryKeyNormEps"/> are not used.</param>
    /// <param name="rotary">Positions; may be shared by layers, and is not disposed with this one.</param>
    /// <param name="queryProjection">[.., hidden_size] to [.., num_heads · head_dim].</param>
    /// <param name="keyProjection">[.., hidden_size] to [.., num_kv_heads · head_dim].</param>
    /// <param name="valueProjection">[.., hidden_size] to [.., num_kv_heads · head_dim].</param>
    /// <param name="outputProjection">[.., num_heads · head_dim] to [.., hidden_size].</param>
    /// <param name="queryNorm">Applied to the queries [batch, n, num_heads, head_dim] before rotary positions; none if null.</param>
    /// <param name="keyNorm">Applied to the keys [batch, n, num_kv_heads, head_dim] before rotary positions; none if null.</param>
    /// <exception cref="ArgumentException">The sizes don't fit together.</exception>
    // RegisterComponents finds the children by reflection; compiled ahead of time, an application has only the fields that are named.
    [DynamicDependency(DynamicallyAccessedMemberTypes.NonPublicFields, typeof(MustafarAttention))]
    public MustafarAttention(
        MustafarAttentionOptions options,
        RotaryEmbedding rotary,
        nn.Module<Tensor, Tensor> queryProjection,
        nn.Module<Tensor, Tensor> keyProjection,
        nn.Module<Tensor, Tensor> valueProjection,
        nn.Module<Tensor, Tensor> outputProjection,
        nn.Module<Tensor, Tensor>? queryNorm = null,
        nn.Module<Tensor, Tensor>? keyNorm = null)
        : base(nameof(MustafarAttention))
    {
        Options = Checked(options, rotary);
        ArgumentNullException.ThrowIfNull(queryProjection);
        ArgumentNullException.ThrowIfNull(keyProjection);
        ArgumentNullException.ThrowIfNull(valueProjection);
        ArgumentNullException.ThrowIfNull(outputProjection);
        _rotary = rotary;
        q_proj = queryProjection;
        k_proj = keyProjection;
        v_proj = valueProjection;
        o_proj = outputProjection;
        q_norm = queryNorm;
        k_norm = keyNorm;
        RegisterComponents();
    }

    /// <summary>Sizes.</summary>
    public MustafarAttentionOptions Options { get; }

    /// <summary>Attends n new tokens to themselves and to the cached ones, and adds them to the cache.</summary>
    /// <param name="hidden">Hidden states [batch, n, hidden_size]; positions follow the cache's lengths.</param>
    /// <param name="cache">This layer's cache.</param>
    /// <returns>Hidden states [batch, n, hidden_size].</returns>
    /// <exception cref="ArgumentException">A type, device or shape doesn't fit.</exception>
    public override Tensor forward(Tensor hidden, KeyValueCache cache) => forward(hidden, cache, default);

    /// <summary>Attends n new tokens, with a separate number for each sequence.</summary>
    /// <param name="hidden">Hidden states [batch, n, hidden_size]; positions follow the cache's lengths.</param>
    /// <param name="cache">This layer's cache.</param>
    /// <param name="counts">How many of the n tokens belong to each sequence; the rest is padding on the right. All n if empty.</param>
    /// <returns>Hidden states [batch, n, hidden_size]; without meaning at padding.</returns>
    /// <exception cref="ArgumentException">A type, device or shape doesn't fit.</exception>
    public Tensor forward(Tensor hidden, KeyValueCache cache, ReadOnlySpan<int> counts)
    {
        ArgumentNullException.ThrowIfNull(hidden);
        ArgumentNullException.ThrowIfNull(cache);
        Check(hidden, cache.BatchSize);
        Check(cache.KeyValueShape, nameof(cache));
        using DisposeScope scope = NewDisposeScope();
        (Tensor query, Tensor keys, Tensor values) = Project(hidden, cache.Lengths);
        return Output(cache.Forward(query, keys, values, Options.Scale, counts)).MoveToOuterDisposeScope();
    }

    /// <summary>Attends the new tokens of a step to themselves and to the cached ones, and adds them to one layer of the cache.</summary>
    /// <param name="hidden">Hidden states [batch, n, hidden_size] of the step's sequences, in its order.</param>
    /// <param name="step">The step.</param>
    /// <param name="layer">The layer's index in the cache.</param>
    /// <returns>Hidden states [batch, n, hidden_size]; without meaning at padding.</returns>
    /// <exception cref="ArgumentException">A type, device or shape doesn't fit.</exception>
    /// <exception cref="InvalidOperationException">The layer has already attended, another one failed, or the step has ended.</exception>
    public Tensor forward(Tensor hidden, CacheStep step, int layer)
    {
        ArgumentNullException.ThrowIfNull(hidden);
        ArgumentNullException.ThrowIfNull(step);
        Check(hidden, step.Sequences.Count);
        Check(step.Cache.KeyValueShape, nameof(step));
        using DisposeScope scope = NewDisposeScope();
        (Tensor query, Tensor keys, Tensor values) = Project(hidden, step.Positions);
        return Output(step.Attend(layer, query, keys, values, Options.Scale)).MoveToOuterDisposeScope();
    }

    // Queries, keys and values [batch, heads, n, head_dim] at their positions.
    private (Tensor Query, Tensor Keys, Tensor Values) Project(Tensor hidden, IReadOnlyList<int> positions)
    {
        (long batch, long tokens) = (hidden.size(0), hidden.size(1));
        Tensor query = q_proj.call(hidden).reshape(batch, tokens, Options.NumHeads, Options.HeadDim);
        Tensor key = k_proj.call(hidden).reshape(batch, tokens, Options.NumKvHeads, Options.HeadDim);
        Tensor value = v_proj.call(hidden).reshape(batch, tokens, Options.NumKvHeads, Options.HeadDim);
        query = q_norm?.call(query) ?? query;
        key = k_norm?.call(key) ?? key;
        (query, key) = _rotary.Apply(query, key, positions);
        return (query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2));
    }

    private Tensor Output(Tensor attended) =>
        o_proj.call(attended.transpose(1, 2).reshape(attended.size(0), attended.size(2), Options.NumHeads * Options.HeadDim));

    private void Check(Tensor hidden, int batch)
    {
        long[] shape = hidden.Sizes();
        if (shape.Length != 3 || shape[0] != batch || shape[2] != Options.HiddenSize)
        {
            throw new ArgumentException(
                $"Expected shape [{batch}, tokens, {Options.HiddenSize}], but got [{string.Join(", ", shape)}].", nameof(hidden));
        }
    }

    private void Check(KeyValueShape shape, string name)
    {
        if (shape.NumKvHeads != Options.NumKvHeads || shape.HeadDim != Options.HeadDim)
        {
            throw new ArgumentException(
                $"Expected a cache of {Options.NumKvHeads} heads of {Options.HeadDim}, but got {shape.NumKvHeads} of {shape.HeadDim}.", name);
        }
    }

    private static Linear[] InputProjections(MustafarAttentionOptions options, ScalarType dtype, Device? device)
    {
        long keys = options.NumKvHeads * (long)options.HeadDim;
        return Weights.Linears(options.HiddenSize, [options.NumHeads * (long)options.HeadDim, keys, keys], options.QkvBias, dtype, device);
    }

    private static RmsNorm? Norm(MustafarAttentionOptions options, ScalarType dtype, Device? device) =>
        options.QueryKeyNormEps is double eps ? new RmsNorm(options.HeadDim, eps, dtype, device) : null;

    private static MustafarAttentionOptions Checked(MustafarAttentionOptions options, RotaryEmbedding rotary)
    {
        ArgumentNullException.ThrowIfNull(options);
        ArgumentNullException.ThrowIfNull(rotary);
        options.Validate();
        if (rotary.Options.HeadDim != options.HeadDim)
        {
            throw new ArgumentException(
                $"Expected rotary positions for heads of {options.HeadDim}, but got {rotary.Options.HeadDim}.", nameof(rotary));
        }

        return options;
    }
}
