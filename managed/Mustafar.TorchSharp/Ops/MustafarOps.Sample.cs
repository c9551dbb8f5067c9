using Mustafar.Native;
using TorchSharp;
using static TorchSharp.torch;

namespace Mustafar;

public static unsafe partial class MustafarOps
{
    /// <summary>
    /// Chooses the next token of each sequence, greedily or by sampling, as its <see cref="SamplingParameters"/> say. The draws depend only
    /// on the logits, the parameters and the number of the draw: they are the same on every device and with any number of threads.
    /// </summary>
    /// <param name="logits">Float32, Float16 or BFloat16 [batch, vocab_size].</param>
    /// <param name="state">The state of the sequences; counts the draws.</param>
    /// <param name="allowed">Tokens that may be chosen, one row for all sequences or one for each, from <see cref="PackTokens"/>: Int32
    /// [⌈vocab_size / 32⌉] or [batch, ⌈vocab_size / 32⌉]. All if null.</param>
    /// <param name="tokens">Receives the result, Int64 [batch]; a new tensor if null.</param>
    /// <param name="logProbabilities">Float32 [batch]: receives the natural logarithm of each token's probability among all unmodified
    /// logits. Not computed if null.</param>
    /// <returns>The tokens. −1, with a log-probability of NaN, if the allowed logits contain a NaN or have no finite maximum; nothing
    /// is counted then.</returns>
    /// <exception cref="ArgumentException">A type, device, layout or shape doesn't fit.</exception>
    /// <exception cref="ObjectDisposedException">The state was disposed.</exception>
    public static Tensor Sample(
        Tensor logits, SamplingState state, Tensor? allowed = null, Tensor? tokens = null, Tensor? logProbabilities = null)
    {
        ArgumentNullException.ThrowIfNull(state);
        ObjectDisposedException.ThrowIf(state.IsDisposed, state);
        LastAxis(logits, nameof(logits));
        int batch = state.BatchSize, vocabSize = state.VocabSize;
        TensorAccess.Validate(logits, nameof(logits), logits.dtype, state.Device, batch, vocabSize);
        long words = Words(vocabSize);
        bool allowedByRow = allowed?.dim() == 2;
        Validated(allowed, nameof(allowed), ScalarType.Int32, state.Device, allowedByRow ? [batch, words] : [words]);
        Validated(tokens, nameof(tokens), ScalarType.Int64, state.Device, batch);
        Validated(logProbabilities, nameof(logProbabilities), ScalarType.Float32, state.Device, batch);
        using DisposeScope scope = NewDisposeScope();
        Tensor result = tokens ?? empty([batch], dtype: ScalarType.Int64, device: state.Device);
        NativeContext context = TensorAccess.Context(state.Device);
        NativeSampling sampling = new()
        {
            DType = (int)TensorAccess.DTypeOf(logits.dtype),
            Batch = batch,
            VocabSize = vocabSize,
            AllowedStride = allowedByRow ? words : 0,
            Logits = MatrixRows.Read(ref logits),
            Options = (NativeSamplingOptions*)TensorAccess.Pointer(state.Options),
            Steps = (long*)TensorAccess.Pointer(state.Steps),
            Counts = (int*)PointerOrNull(state.Counts),
            Prompt = (uint*)PointerOrNull(state.Prompt),
            Allowed = (uint*)PointerOrNull(allowed),
            Tokens = (long*)TensorAccess.Pointer(result),
            LogProbabilities = (float*)PointerOrNull(logProbabilities),
        };
        NativeCall.Check(NativeMethods.Sample(&context, &sampling));
        GC.KeepAlive(logits);
        GC.KeepAlive(state);
        GC.KeepAlive(allowed);
        GC.KeepAlive(logProbabilities);
        return Returned(result, tokens);
    }

    /// <summary>Packs a mask of allowed tokens into bits, as <see cref="Sample"/> takes them.</summary>
    /// <param name="mask">Bool [vocab_size] or [batch, vocab_size], true for tokens that may be chosen.</param>
    /// <returns>A new Int32 tensor [⌈vocab_size / 32⌉] or [batch, ⌈vocab_size / 32⌉]; token t is bit t % 32 of word t / 32.</returns>
    /// <exception cref="ArgumentException">The type or shape doesn't fit.</exception>
    public static Tensor PackTokens(Tensor mask)
    {
        ArgumentNullException.ThrowIfNull(mask);
        if (mask.dtype != ScalarType.Bool || mask.dim() is < 1 or > 2 || mask.size(-1) == 0)
        {
            throw new ArgumentException(
                $"Expected Bool [vocab_size] or [batch, vocab_size], but got {mask.dtype} [{string.Join(", ", mask.shape)}].", nameof(mask));
        }

        using DisposeScope scope = NewDisposeScope();
        long[] shape = [.. mask.Sizes()[..^1], Words(mask.size(-1))];
        return PackMask(mask.reshape(1, 1, -1, mask.size(-1))).reshape(shape).MoveToOuterDisposeScope();
    }

    /// <summary>Checks an optional contiguous tensor.</summary>
    private static void Validated(Tensor? tensor, string name, ScalarType type, torch.Device device, params ReadOnlySpan<long> shape)
    {
        if (tensor is null)
        {
            return;
        }

        TensorAccess.Validate(tensor, name, type, device, shape);
        if (!tensor.is_contiguous())
        {
            throw new ArgumentException($"Expected a contiguous tensor, but got strides [{string.Join(", ", tensor.stride())}].", name);
        }
    }
}
