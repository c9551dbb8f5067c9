using Mustafar.Native;
using Mustafar.Tests.Oracle;
using TorchSharp;
using static TorchSharp.torch;

namespace Mustafar.Tests.Native;

/// <summary>mustafar_attention_forward itself: what no managed type uses of it, and arguments that it must refuse.</summary>
[TestFixtureSource(typeof(TestDevices), nameof(TestDevices.All))]
internal sealed unsafe class NativeAttentionTests(string device)
{
    private const int Queries = 3;
    private const int Ring = 64;
    private const float Scale = 0.2f;

    // Two sequences: compressed tokens, tokens in the ring (which has gone round), tokens of the caller.
    private static readonly int[] Compressed = [96, 32];
    private static readonly int[] Lengths = [139, 50];
    private static readonly int[] Counts = [Queries, 1];

    [TestCase(0)]
    [TestCase(1)]
    [TestCase(10)]
    [TestCase(45)]
    [TestCase(100)]
    [TestCase(1000)]
    public void Log_sum_exp_and_a_sliding_window(int window)
    {
        TestDevices.ForEachVariant(device, variant =>
        {
            using var scope = NewDisposeScope();
            using Problem problem = new(device);
            Tensor logSumExp = full(new long[] { 2, 4, Queries }, 7f, device: device);
            NativeAttention arguments = problem.Arguments;
            arguments.SlidingWindow = window;
            arguments.LogSumExp = (float*)TensorAccess.Pointer(logSumExp);
            problem.Run(arguments);
            (Tensor output, Tensor expectedLogSumExp) = problem.Expected(window);
            Compare.Close(problem.Output, output, 2e-5, 2e-5, $"{variant}: output");
            Compare.Close(logSumExp, expectedLogSumExp, 1e-5, 1e-5, $"{variant}: log-sum-exp");
        });
    }

    [Test]
    public void Bad_arguments_are_refused_by_name()
    {
        using var scope = NewDisposeScope();
        using Problem problem = new(device);
        (string Says, Func<NativeAttention, NativeAttention> Change)[] cases =
        [
            ("num_heads", a => a with { NumHeads = 3 }),
            ("num_kv_heads", a => a with { NumKvHeads = 0 }),
            ("batch", a => a with { Batch = -1 }),
            ("num_queries", a => a with { NumQueries = -1 }),
            ("num_fresh", a => a with { NumFresh = 1 }),
            ("scale", a => a with { Scale = 0 }),
            ("scale", a => a with { Scale = float.NaN }),
            ("sliding_window", a => a with { SlidingWindow = -1 }),
            ("tail_capacity", a => a with { TailCapacity = -1 }),
            ("max_tokens", a => a with { MaxTokens = int.MaxValue }),
            ("query", a => a with { Query = a.Query with { Data = null } }),
            ("query", a => a with { Query = a.Query with { TokenStride = -64 } }),
            ("query", a => a with { Query = a.Query with { BatchStride = long.MaxValue } }),
            ("output", a => a with { Output = a.Output with { TokenStride = 0 } }),
            ("output", a => a with { Output = a.Output with { Data = (byte*)a.Output.Data + 1 } }),
            ("tail_keys", a => a with { TailKeys = default }),
            ("fresh_values", a => a with { FreshValues = default }),
            ("lengths", a => a with { Lengths = null }),
            ("compressed", a => a with { Compressed = null }),
            ("values.format.head_dim", a => a with { Values = a.Values with { Format = a.Values.Format with { HeadDim = 128 } } }),
            ("values.format.dtype", a => a with { Values = a.Values with { Format = a.Values.Format with { DType = 1 } } }),
            ("format.keep", a => a with { Keys = a.Keys with { Format = a.Keys.Format with { Keep = 65 } } }),
            ("format.layout", a => a with { Keys = a.Keys with { Format = a.Keys.Format with { Layout = 2 } } }),
        ];
        // What only the host can look at, and the workspace, which not all of a device's kernels need.
        (string Says, Func<NativeAttention, NativeAttention> Change)[] onTheCpu =
        [
            ("lengths", a => a with { MaxTokens = 100 }),
            ("tail_capacity", a => a with { TailCapacity = 32 }),
            ("query_counts", a => a with { NumQueries = 2, NumFresh = 2 }),
            ("keys: expected an address", a => a with { Keys = a.Keys with { Pages = null } }),
            ("keys.slab_bytes", a => a with { Keys = a.Keys with { SlabBytes = a.Keys.SlabBytes - 1 } }),
            ("keys.slab_count", a => a with { Keys = a.Keys with { SlabCount = 0 } }),
            ("slab_pages", a => a with { Keys = a.Keys with { SlabPages = 0 } }),
            ("num_slots", a => a with { NumSlots = a.Batch - 1 }),
            ("keys.page_capacity", a => a with { Keys = a.Keys with { PageBlocks = 2 } }),
            ("values.base", a => a with { Values = a.Values with { Base = 8 } }),
            ("values.head_stride", a => a with { Values = a.Values with { HeadStride = 16 } }),
            ("workspace_bytes", a => a with { WorkspaceBytes = a.WorkspaceBytes - 1 }),
            ("workspace", a => a with { Workspace = (byte*)a.Workspace + 4 }),
            ("workspace", a => a with { Workspace = null }),
            ("key_factors", a => a with { KeyFactors = (float*)a.Workspace }),
            ("value_format", a => a with { Keys = a.Keys with { Format = a.Keys.Format with { ValueFormat = 3 } } }),
            ("keep", a => a with { Keys = a.Keys with { Format = a.Keys.Format with { Pattern = 3 } } }),
        ];
        foreach ((string says, Func<NativeAttention, NativeAttention> change) in device == "cpu" ? [.. cases, .. onTheCpu] : cases)
        {
            NativeAttention arguments = change(problem.Arguments);
            Assert.That(() => problem.Run(arguments), Throws.ArgumentException.With.Message.Contains(says), says);
        }

        (string Says, Func<NativeFormat, NativeFormat> Change)[] unsupported =
        [
            ("head_dim", format => format with { HeadDim = 65 }),
            ("balanced", format => format with { Pattern = 1, Keep = 3 }),
        ];
        foreach ((string says, Func<NativeFormat, NativeFormat> change) in unsupported)
        {
            NativeAttention arguments = problem.Arguments;
            arguments.Keys.Format = change(arguments.Keys.Format);
            arguments.Values.Format = change(arguments.Values.Format);
            Assert.That(() => problem.Run(arguments), Throws.TypeOf<NotSupportedException>().With.Message.Contains(says), says);
        }

        problem.Run(problem.Arguments);
        Compare.Close(problem.Output, problem.Expected(0).Output, 2e-5, 2e-5, "after all");
    }

    // Lists all parts of a call and keeps them alive.
    private sealed class Problem : IDisposable
    {
        private readonly torch.Device _device;
        private readonly Tensor _query, _keys, _values, _workspace;
        private readonly Tensor[] _held;
        private readonly BitmapTensor _packedKeys, _packedValues;
        private readonly BackendArray<int> _lengths, _compressed, _counts;

        internal Problem(string device)
        {
            _device = new torch.Device(device);
            manual_seed(1);
            _query = randn(2, 4, Queries, 64).to(_device);
            (_keys, _values) = (randn(2, 2, Lengths[0], 64).to(_device), randn(2, 2, Lengths[0], 64).to(_device));
            _packedKeys = BitmapTensor.Compress(_keys.narrow(2, 0, Compressed[0]), 24);
            _packedValues = BitmapTensor.Compress(_values.narrow(2, 0, Compressed[0]), 40);
            (Tensor tailKeys, Tensor freshKeys) = Parts(_keys);
            (Tensor tailValues, Tensor freshValues) = Parts(_values);
            Output = full_like(_query, double.NaN);
            _held = [tailKeys, tailValues, freshKeys, freshValues];
            (_lengths, _compressed, _counts) = (OnDevice(Lengths), OnDevice(Compressed), OnDevice(Counts));
            NativeAttention arguments = new()
            {
                Batch = 2,
                NumSlots = 2,
                NumHeads = 4,
                NumKvHeads = 2,
                NumQueries = Queries,
                NumFresh = Queries,
                TailCapacity = Ring,
                MaxTokens = Lengths[0],
                Scale = Scale,
                Lengths = _lengths.Pointer,
                Compressed = _compressed.Pointer,
                QueryCounts = _counts.Pointer,
                Query = TensorAccess.Dense(_query),
                Output = TensorAccess.Dense(Output),
                Keys = _packedKeys.Native,
                Values = _packedValues.Native,
                TailKeys = TensorAccess.Dense(tailKeys),
                TailValues = TensorAccess.Dense(tailValues),
                FreshKeys = TensorAccess.Dense(freshKeys),
                FreshValues = TensorAccess.Dense(freshValues),
            };
            NativeContext context = TensorAccess.Context(_device);
            long bytes;
            NativeCall.Check(NativeMethods.AttentionWorkspace(&context, &arguments, &bytes));
            _workspace = empty([bytes], dtype: ScalarType.Byte, device: _device);
            arguments.Workspace = TensorAccess.Pointer(_workspace);
            arguments.WorkspaceBytes = bytes;
            Arguments = arguments;
        }

        internal NativeAttention Arguments { get; }

        internal Tensor Output { get; }

        internal void Run(NativeAttention arguments)
        {
            NativeContext context = TensorAccess.Context(_device);
            NativeCall.Check(NativeMethods.AttentionForward(&context, &arguments));
            GC.KeepAlive(_held);
            GC.KeepAlive(this);
        }

        /// <summary>Output and log-sum-exp in double precision.</summary>
        internal (Tensor Output, Tensor LogSumExp) Expected(int window)
        {
            Tensor output = zeros(2, 4, Queries, 64, dtype: ScalarType.Float64);
            Tensor logSumExp = full(new long[] { 2, 4, Queries }, double.NegativeInfinity, dtype: ScalarType.Float64);
            for (int b = 0; b < 2; b++)
            {
                (Tensor keys, Tensor values) = (Stored(_keys, b, 24), Stored(_values, b, 40));
                for (int head = 0; head < 4; head++)
                {
                    for (int i = 0; i < Counts[b]; i++)
                    {
                        int position = Lengths[b] - Counts[b] + i;
                        int first = window == 0 ? 0 : Math.Max(0, position + 1 - window);
                        Tensor query = _query[b, head, i].cpu().to(ScalarType.Float64);
                        Tensor scores = keys[head / 2].narrow(0, first, position + 1 - first).mv(query).mul((double)Scale);
                        output[b, head, i] = values[head / 2].narrow(0, first, position + 1 - first).t().mv(scores.softmax(0));
                        logSumExp[b, head, i] = scores.logsumexp(0);
                    }
                }
            }

            return (output, logSumExp);
        }

        public void Dispose()
        {
            _packedKeys.Dispose();
            _packedValues.Dispose();
            _lengths.Dispose();
            _compressed.Dispose();
            _counts.Dispose();
        }

        private BackendArray<int> OnDevice(int[] numbers)
        {
            BackendArray<int> array = new(numbers.Length, _device);
            numbers.CopyTo(array.Span);
            array.Upload();
            return array;
        }

        // The ring and the caller's own tokens; what belongs to no token is NaN.
        private static (Tensor Ring, Tensor Fresh) Parts(Tensor tokens)
        {
            Tensor ring = full(new long[] { 2, 2, Ring, 64 }, double.NaN, dtype: tokens.dtype, device: tokens.device);
            Tensor fresh = full(new long[] { 2, 2, Queries, 64 }, double.NaN, dtype: tokens.dtype, device: tokens.device);
            for (int b = 0; b < 2; b++)
            {
                int past = Lengths[b] - Counts[b];
                for (int token = Compressed[b]; token < past; token++)
                {
                    ring[b].select(1, token % Ring).copy_(tokens[b].select(1, token));
                }

                fresh[b].narrow(1, 0, Counts[b]).copy_(tokens[b].narrow(1, past, Counts[b]));
            }

            return (ring, fresh);
        }

        private static Tensor Stored(Tensor tokens, int sequence, int keep)
        {
            Tensor all = tokens[sequence].cpu();
            int packed = Compressed[sequence];
            Tensor pruned = ReferencePruning.Prune(all.narrow(1, 0, packed), keep);
            return cat([pruned, all.narrow(1, packed, all.shape[1] - packed)], 1).to(ScalarType.Float64);
        }
    }
}
