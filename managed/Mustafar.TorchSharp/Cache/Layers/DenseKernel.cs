using Mustafar.Native;
using TorchSharp;
using static TorchSharp.torch;

namespace Mustafar;

/// <summary>Attention of a few new tokens per sequence to dense keys and values on the CPU, by the library's kernels.</summary>
/// <remarks>
/// To them a dense cache is a recent window of which nothing is compressed: token t is in place t. torch's kernel is made for many queries;
/// for one in bfloat16 it takes several times as long.
/// </remarks>
internal sealed unsafe class DenseKernel : IDisposable
{
    // With more queries torch's kernel is faster.
    private const int MostQueries = LayerStorage.MostDecodeQueriesCpu;

    // Tokens are read in runs of a page, though there are none: long ones, since keys and values are far apart.
    private const int PageBlocks = 16;

    private readonly CacheShape _shape;
    private readonly NativeFormat _format;
    private readonly StepWorkspace _workspace;
    private int[] _nothing = [];

    private DenseKernel(CacheShape shape)
    {
        _shape = shape;
        _format = new LayerFormat(shape, new MustafarOptions()).Keys;
        _workspace = new StepWorkspace(shape.Device);
    }

    /// <summary>Makes one; null if there is no such kernel.</summary>
    internal static DenseKernel? TryMake(CacheShape shape) =>
        shape.Device.type == DeviceType.CPU && Limits.IsServed(shape.HeadDim) ? new DenseKernel(shape) : null;

    /// <summary>Whether it can attend from a step's tokens.</summary>
    /// <param name="step">The step.</param>
    /// <param name="scale">Factor of the scores; 1/√head_dim if null.</param>
    internal static bool Takes(DenseStep step, double? scale) => step.Tokens <= MostQueries && (float)(scale ?? 1) is > 0 and < float.PositiveInfinity;

    /// <summary>Attends from a step's tokens, which are stored already.</summary>
    /// <param name="step">The step.</param>
    /// <param name="keys">[slots, num_kv_heads, capacity, head_dim].</param>
    /// <param name="values">[slots, num_kv_heads, capacity, head_dim].</param>
    /// <param name="window">The layer's sliding window.</param>
    /// <param name="query">[batch, num_heads, n, head_dim].</param>
    /// <param name="scale">Factor of the scores; 1/√head_dim if null.</param>
    /// <returns>A tensor like the query, in the current dispose scope; zeros for padding.</returns>
    internal Tensor Forward(DenseStep step, Tensor keys, Tensor values, int? window, Tensor query, double? scale)
    {
        query = TensorAccess.WithContiguousRows(query);
        Tensor output = empty(query.Sizes(), dtype: query.dtype, device: _shape.Device);
        int slots = step.LengthsAfter.Length;
        if (_nothing.Length < slots)
        {
            _nothing = new int[slots];
        }

        fixed (int* sequences = step.Slots, lengths = step.LengthsAfter, counts = step.Counts, compressed = _nothing)
        {
            NativeBlocks none = new() { Format = _format, PageBlocks = PageBlocks, SlabPages = 1 };
            NativeContext context = TensorAccess.Context(_shape.Device);
            NativeAttention attention = new()
            {
                Batch = step.Slots.Length,
                NumSlots = slots,
                NumHeads = checked((int)query.size(1)),
                NumKvHeads = _shape.NumKvHeads,
                NumQueries = step.Tokens,
                TailCapacity = checked((int)keys.size(2)),
                MaxTokens = step.Longest,
                SlidingWindow = window ?? 0,
                Scale = (float)(scale ?? 1 / Math.Sqrt(_shape.HeadDim)),
                Sequences = sequences,
                Lengths = lengths,
                Compressed = compressed,
                QueryCounts = counts,
                Query = TensorAccess.Dense(query),
                Output = TensorAccess.Dense(output),
                Keys = none,
                Values = none,
                TailKeys = TensorAccess.Dense(keys),
                TailValues = TensorAccess.Dense(values),
            };
            _workspace.Provide(context, ref attention);
            int status = NativeMethods.AttentionForward(&context, &attention);
            GC.KeepAlive(query);
            NativeCall.Check(status);
        }

        return output;
    }

    public void Dispose() => _workspace.Dispose();
}
