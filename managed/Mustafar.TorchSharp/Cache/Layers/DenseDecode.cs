using Mustafar.Native;
using TorchSharp;
using static TorchSharp.torch;

namespace Mustafar;

/// <summary>Attention of one new token per sequence to dense keys and values on CUDA, in its fastest form there: cuDNN with the KV heads
/// unexpanded.</summary>
/// <remarks>
/// cuDNN prepares a plan for each number of tokens, which takes longer than the attention. So it is given a number that stays the same for
/// many steps, and a bias of -infinity for places without a token, or with one that the new token does not see. That costs about 1 µs or 1
/// % on an H200, whichever is more. Everything that changes from step to step is on the device, always at the same address.
/// </remarks>
internal sealed unsafe class DenseDecode : IDisposable
{
    private const int MostHeadDim = 128; // of cuDNN

    private readonly CacheShape _shape;
    private readonly int _slots;
    private readonly NativeFormat _format;
    private readonly BackendArray<int> _numbers;
    private readonly Dictionary<int, Tensor> _bias = []; // by sliding window, 0 for none
    private Tensor? _columns; // 0, 1, …
    private Tensor? _isPadding;

    private DenseDecode(CacheShape shape, int slots)
    {
        (_shape, _slots) = (shape, slots);
        _format = new LayerFormat(shape, new MustafarOptions()).Keys;
        _numbers = new BackendArray<int>((int)Part.Count * slots, shape.Device);
    }

    private enum Part
    {
        Slots, Counts, Positions, // [batch]
        Lengths, Compressed, // [slots]
        Count,
    }

    /// <summary>Positions of the rows, Int32 [batch] on the device, in the current dispose scope.</summary>
    internal Tensor Positions => Numbers(Part.Positions);

    /// <summary>Rows of the step.</summary>
    internal int Batch { get; private set; }

    /// <summary>Number of places of each sequence that are attended to.</summary>
    internal int Bound { get; private set; }

    /// <summary>Whether a row gets no token.</summary>
    internal bool IsPadded { get; private set; }

    /// <summary>Address of its numbers.</summary>
    internal nint Address => (nint)_numbers.Pointer;

    /// <summary>Address of the bias of the layers.</summary>
    internal nint BiasAddress => _bias.Count == 0 ? 0 : (nint)TensorAccess.Pointer(_bias.Values.First());

    /// <summary>Makes one for that many slots; null if such attention is not available.</summary>
    internal static DenseDecode? TryMake(CacheShape shape, int slots) =>
        shape.Device.type == DeviceType.CUDA && shape.DType != ScalarType.Float32 && shape.HeadDim <= MostHeadDim
            && Limits.IsServed(shape.HeadDim) && TorchShim.HasCuDnn
            ? new DenseDecode(shape, slots)
            : null;

    /// <summary>Copies a step's numbers to the device.</summary>
    /// <param name="step">A step of one token.</param>
    /// <param name="capacity">Number of places of a sequence.</param>
    /// <param name="windows">The sliding window of each layer.</param>
    internal void Plan(DenseStep step, int capacity, IEnumerable<int?> windows)
    {
        (Batch, Bound, IsPadded) = (step.Slots.Length, Math.Min(StepBound.Of(step.Longest), capacity), step.IsPadded);
        for (int b = 0; b < Batch; b++)
        {
            int slot = step.Slots[b];
            Span(Part.Slots)[b] = slot;
            Span(Part.Counts)[b] = step.Counts[b];
            Span(Part.Positions)[b] = step.Before[b];
            Span(Part.Lengths)[slot] = step.Before[b];
        }

        _numbers.Upload();
        if (_columns is null || _columns.numel() < capacity)
        {
            Allocate(capacity, windows);
        }
    }

    /// <summary>Computes what all layers of the step read. It is part of the step, which a graph repeats.</summary>
    internal void Prepare()
    {
        using DisposeScope scope = NewDisposeScope();
        Tensor position = Positions.unsqueeze(1);
        Tensor columns = _columns!.narrow(0, 0, Bound).unsqueeze(0);
        Tensor later = columns.gt(position);
        foreach ((int window, Tensor bias) in _bias)
        {
            Tensor hidden = later;
            if (window > 0)
            {
                Scalar past = -window;
                hidden = later.logical_or(columns.le(position.add(past, Scalars.One)));
                GC.KeepAlive(past);
            }

            Rows(bias).zero_().masked_fill_(hidden, Scalars.NegativeInfinity);
        }

        if (IsPadded)
        {
            _isPadding!.narrow(0, 0, Batch).copy_(Numbers(Part.Counts).eq(Scalars.Zero));
        }
    }

    /// <summary>Adds the tokens to a layer and attends from them.</summary>
    /// <param name="step">The step.</param>
    /// <param name="storedKeys">[slots, num_kv_heads, capacity, head_dim].</param>
    /// <param name="storedValues">[slots, num_kv_heads, capacity, head_dim].</param>
    /// <param name="window">The layer's sliding window.</param>
    /// <param name="query">[batch, num_heads, 1, head_dim].</param>
    /// <param name="keys">[batch, num_kv_heads, 1, head_dim].</param>
    /// <param name="values">[batch, num_kv_heads, 1, head_dim].</param>
    /// <param name="scale">Factor of the scores; 1/√head_dim if null.</param>
    /// <param name="rotation">Still to be applied to queries and keys; none if null. What the keys hold afterwards is unspecified.</param>
    internal Tensor Forward(
        DenseStep step,
        Tensor storedKeys,
        Tensor storedValues,
        int? window,
        Tensor query,
        Tensor keys,
        Tensor values,
        double? scale,
        HeadRotation? rotation)
    {
        Append(storedKeys, storedValues, TensorAccess.WithContiguousRows(keys), TensorAccess.WithContiguousRows(values), rotation);
        Tensor bias = Rows(_bias[window ?? 0]).reshape(Batch, 1, 1, Bound).expand(Batch, query.size(1), 1, Bound);
        Tensor output = TorchShim.CuDnnAttention(
            TensorAccess.WithAlignedRows(query), step.Rows(storedKeys.narrow(2, 0, Bound)), step.Rows(storedValues.narrow(2, 0, Bound)),
            bias, causal: false, scale ?? 1 / Math.Sqrt(_shape.HeadDim));
        return IsPadded ? output.masked_fill_(_isPadding!.narrow(0, 0, Batch).reshape(-1, 1, 1, 1), Scalars.Zero) : output;
    }

    public void Dispose()
    {
        _numbers.Dispose();
        Free();
    }

    // The recent window of a cache that never compresses is a dense cache: token t is in place t.
    private void Append(Tensor storedKeys, Tensor storedValues, Tensor keys, Tensor values, HeadRotation? rotation)
    {
        int capacity = checked((int)storedKeys.size(2));
        NativeBlocks none = new() { Format = _format, PageBlocks = 1, SlabPages = 1 };
        NativeAppend append = new()
        {
            Batch = Batch,
            NumSlots = _slots,
            NumKvHeads = _shape.NumKvHeads,
            NumTokens = 1,
            GroupSize = NativeConstants.BlockTokens,
            LocalWindow = capacity - NativeConstants.BlockTokens,
            TailCapacity = capacity,
            MaxTokens = capacity - 1,
            Sequences = Pointer(Part.Slots),
            Counts = Pointer(Part.Counts),
            Lengths = Pointer(Part.Lengths),
            Compressed = Pointer(Part.Compressed),
            NewKeys = TensorAccess.Dense(keys),
            NewValues = TensorAccess.Dense(values),
            Keys = none,
            Values = none,
            TailKeys = TensorAccess.Dense(storedKeys),
            TailValues = TensorAccess.Dense(storedValues),
        };
        HeadRotation.Append(rotation, _shape.Device, &append);
        GC.KeepAlive(keys);
        GC.KeepAlive(values);
    }

    private void Allocate(int capacity, IEnumerable<int?> windows)
    {
        using IDisposable mode = inference_mode(false);
        Free();
        _isPadding = zeros([_slots], dtype: ScalarType.Bool, device: _shape.Device).DetachFromDisposeScope();
        foreach (int? window in windows.Distinct())
        {
            _bias[window ?? 0] = zeros([_slots * (long)capacity], dtype: _shape.DType, device: _shape.Device).DetachFromDisposeScope();
        }

        using Tensor columns = Scalars.Range(0, capacity, CPU);
        _columns = columns.to(ScalarType.Int32).to(_shape.Device).DetachFromDisposeScope();
    }

    private void Free()
    {
        _columns?.Dispose();
        _isPadding?.Dispose();
        foreach (Tensor bias in _bias.Values)
        {
            bias.Dispose();
        }

        _bias.Clear();
    }

    private Tensor Rows(Tensor bias) => bias.narrow(0, 0, Batch * (long)Bound).view(Batch, Bound);

    private Tensor Numbers(Part part) => _numbers.Tensor.narrow(0, (int)part * _slots, Batch);

    private Span<int> Span(Part part) => _numbers.Span.Slice((int)part * _slots, _slots);

    private int* Pointer(Part part) => _numbers.Pointer + ((int)part * _slots);
}
