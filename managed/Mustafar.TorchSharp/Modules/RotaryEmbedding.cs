using TorchSharp;
using static TorchSharp.torch;

namespace Mustafar;

/// <summary>
/// Rotary position embedding (RoFormer, arXiv 2104.09864) in the rotate-half convention of Hugging Face checkpoints.
/// </summary>
/// <remarks>
/// Cosines and sines are computed once per device and data type, grow with the longest position requested, and are shared by all
/// layers that hold this object. It has no parameters. Several threads may call all members; <see cref="Dispose"/> waits for calls
/// in progress.
/// </remarks>
public sealed class RotaryEmbedding : IDisposable
{
    private const int SmallestTable = 2048;

    // Also the lock under which it changes.
    private readonly Dictionary<(ScalarType Type, DeviceType Device, int Index), Table> _tables = [];
    private readonly Dictionary<(DeviceType Device, int Index), RotaryAngles> _angles = [];
    private volatile bool _disposed;
    private int _calls;

    /// <summary>Makes an embedding; tables are computed on first use.</summary>
    /// <param name="options">Channels and wavelengths.</param>
    /// <exception cref="ArgumentException">The values of a scaling don't fit together.</exception>
    public RotaryEmbedding(RotaryOptions options)
    {
        ArgumentNullException.ThrowIfNull(options);
        options.Scaling?.Validate();
        Options = options;
    }

    /// <summary>Channels and wavelengths.</summary>
    public RotaryOptions Options { get; }

    /// <summary>Rotates queries and keys to their positions.</summary>
    /// <param name="query">Queries [batch, n, num_heads, head_dim].</param>
    /// <param name="key">Keys [batch, n, num_kv_heads, head_dim], of the same type and device.</param>
    /// <param name="starts">Position of each sequence's first token, one per sequence; the n tokens are consecutive.</param>
    /// <returns>New tensors of the same shapes.</returns>
    /// <exception cref="ArgumentException">A shape or the number of positions doesn't fit.</exception>
    /// <exception cref="ObjectDisposedException">The embedding was disposed.</exception>
    public (Tensor Query, Tensor Key) Apply(Tensor query, Tensor key, IReadOnlyList<int> starts)
    {
        ObjectDisposedException.ThrowIf(_disposed, this);
        ArgumentNullException.ThrowIfNull(query);
        ArgumentNullException.ThrowIfNull(key);
        ArgumentNullException.ThrowIfNull(starts);
        if (key.dtype != query.dtype)
        {
            throw new ArgumentException($"Expected keys in {query.dtype}, the type of the queries, but got {key.dtype}.", nameof(key));
        }

        if (key.device_type != query.device_type || key.device_index != query.device_index)
        {
            throw new ArgumentException($"Expected keys on {query.device}, with the queries, but got {key.device}.", nameof(key));
        }

        long[] shape = query.Sizes();
        long[] keyShape = key.Sizes();
        if (shape.Length != 4 || shape[3] != Options.HeadDim)
        {
            throw new ArgumentException(
                $"Expected shape [batch, tokens, heads, {Options.HeadDim}], but got [{string.Join(", ", shape)}].", nameof(query));
        }

        if (keyShape.Length != 4 || keyShape[0] != shape[0] || keyShape[1] != shape[1] || keyShape[3] != shape[3])
        {
            throw new ArgumentException(
                $"Expected shape [{shape[0]}, {shape[1]}, heads, {shape[3]}], but got [{string.Join(", ", keyShape)}].", nameof(key));
        }

        if (starts.Count != shape[0])
        {
            throw new ArgumentException($"Expected one position for each of {shape[0]} sequences, but got {starts.Count}.", nameof(starts));
        }

        Interlocked.Increment(ref _calls);
        try
        {
            using DisposeScope scope = NewDisposeScope();
            (Tensor cos, Tensor sin) = Rows(query, starts, checked((int)shape[1]));
            return (Turn(query, cos, sin).MoveToOuterDisposeScope(), Turn(key, cos, sin).MoveToOuterDisposeScope());
        }
        finally
        {
            Interlocked.Decrement(ref _calls);
        }
    }

    /// <summary>The angles by which <see cref="MustafarOps.Rotate"/> rotates on a device. They belong to this object.</summary>
    /// <param name="device">The device of the heads.</param>
    /// <exception cref="ObjectDisposedException">The embedding was disposed.</exception>
    public RotaryAngles AnglesOn(Device device)
    {
        ArgumentNullException.ThrowIfNull(device);
        lock (_tables)
        {
            ObjectDisposedException.ThrowIf(_disposed, this);
            if (!_angles.TryGetValue((device.type, device.index), out RotaryAngles? angles))
            {
                using IDisposable mode = inference_mode(false);
                using Tensor perPosition = tensor(Options.AnglesPerPosition(), device: CPU);
                angles = RotaryAngles.PerPosition(perPosition.to(device).DetachFromDisposeScope());
                _angles.Add((device.type, device.index), angles);
            }

            return angles;
        }
    }

    /// <inheritdoc/>
    public void Dispose()
    {
        // A call that begins after this gets no table.
        _disposed = true;
        Interlocked.MemoryBarrier();
        SpinWait.SpinUntil(() => Volatile.Read(ref _calls) == 0);
        lock (_tables)
        {
            foreach (Table table in _tables.Values)
            {
                table.Dispose();
            }

            _tables.Clear();
            foreach (RotaryAngles angles in _angles.Values)
            {
                angles.Frequencies!.Dispose();
            }

            _angles.Clear();
        }
    }

    // With the sine's sign in the table, rotate_half(x) · sin is the product with x rolled by half a head.
    private static Tensor Turn(Tensor x, Tensor cos, Tensor sin) => (x * cos).addcmul_(x.roll(x.size(3) / 2, 3), sin, Scalars.One);

    private (Tensor Cos, Tensor Sin) Rows(Tensor like, IReadOnlyList<int> starts, int count)
    {
        int first = starts[0];
        int last = first;
        bool same = true;
        for (int i = 0; i < starts.Count; i++)
        {
            ArgumentOutOfRangeException.ThrowIfNegative(starts[i], nameof(starts));
            same &= starts[i] == first;
            last = Math.Max(last, starts[i]);
        }

        Table table = TableFor(like, checked(last + count));
        if (same)
        {
            return (table.Cos.narrow(0, first, count), table.Sin.narrow(0, first, count));
        }

        long[] positions = new long[starts.Count * count];
        for (int i = 0; i < positions.Length; i++)
        {
            positions[i] = starts[i / count] + (i % count);
        }

        Tensor index = tensor(positions, device: like.device);
        long[] shape = [starts.Count, count, 1, Options.HeadDim];
        return (table.Cos.index_select(0, index).reshape(shape), table.Sin.index_select(0, index).reshape(shape));
    }

    private Table TableFor(Tensor like, int positions)
    {
        (ScalarType, DeviceType, int) key = (like.dtype, like.device_type, like.device_index);
        lock (_tables)
        {
            ObjectDisposedException.ThrowIf(_disposed, this);
            if (_tables.TryGetValue(key, out Table? table) && table.Positions >= positions)
            {
                return table;
            }

            // A table that is replaced by a larger one isn't disposed: another thread may be reading it. The garbage collector frees it.
            uint rounded = System.Numerics.BitOperations.RoundUpToPowerOf2((uint)Math.Max(positions, SmallestTable));
            table = Table.Compute(Options, (int)Math.Min(rounded, int.MaxValue), like.dtype, like.device);
            _tables[key] = table;
            return table;
        }
    }

    // Cos and Sin are [positions, 1, head_dim], so that they broadcast over heads; Sin is negative in the first half of the channels.
    private sealed record Table(Tensor Cos, Tensor Sin, int Positions) : IDisposable
    {
        public static Table Compute(RotaryOptions options, int positions, ScalarType dtype, Device device)
        {
            // A tensor made in inference mode could not take part in training later.
            using IDisposable mode = inference_mode(false);
            using IDisposable noGrad = no_grad();
            long headDim = options.HeadDim;
            Tensor cos = empty([positions, 1, headDim], dtype: dtype, device: device).DetachFromDisposeScope();
            Tensor sin = empty([positions, 1, headDim], dtype: dtype, device: device).DetachFromDisposeScope();
            using Tensor anglesPerPosition = tensor(options.AnglesPerPosition(), device: CPU);
            for (int first = 0; first < positions; first += SmallestTable)
            {
                // In parts: as a whole, a long table in float64 would take many times its final memory.
                using DisposeScope scope = NewDisposeScope();
                int count = Math.Min(SmallestTable, positions - first);
                Tensor angles = outer(Scalars.Range(first, count, CPU).to(ScalarType.Float64), anglesPerPosition).unsqueeze(1);
                Tensor sines = angles.sin();
                cos.narrow(0, first, count).copy_(angles.cos().repeat(1, 1, 2));
                sin.narrow(0, first, count).copy_(cat([-sines, sines], 2));
            }

            return new Table(cos, sin, positions);
        }

        public void Dispose()
        {
            Cos.Dispose();
            Sin.Dispose();
        }
    }
}
