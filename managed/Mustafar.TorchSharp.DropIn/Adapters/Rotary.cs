using TorchSharp;
using static TorchSharp.torch;

namespace Mustafar.DropIn;

/// <summary>Rotary positions in the forms that models pass to their attention.</summary>
internal static class Rotary
{
    [ThreadStatic]
    private static Tensor? t_rows;

    [ThreadStatic]
    private static (int Batch, int Tokens, bool OfEach, DeviceType, int) t_shape;

    /// <summary>Rotates channel i together with channel i + head_dim / 2, in place and computed in f32.</summary>
    /// <param name="query">[batch, num_heads, n, head_dim].</param>
    /// <param name="keys">[batch, num_kv_heads, n, head_dim].</param>
    /// <param name="cos">Cosines [batch or 1, n, head_dim], whose halves are the same.</param>
    /// <param name="sin">Sines in the same form.</param>
    internal static void RotateHalves(Tensor query, Tensor keys, Tensor cos, Tensor sin)
    {
        (int batch, int tokens) = (checked((int)query.size(0)), checked((int)query.size(2)));
        RotaryHeads heads = new(query, keys);
        MustafarOps.Rotate(
            heads, Rows(batch, tokens, ofEach: cos.size(0) > 1, query.device), RotaryAngles.FromTables(Table(cos), Table(sin)), output: heads);
    }

    private static Tensor Table(Tensor halves) =>
        halves.narrow(-1, 0, halves.size(-1) / 2).to(ScalarType.Float32).contiguous().reshape(-1, halves.size(-1) / 2);

    // The row of the tables for each token, Int32 [batch, n]: the same in all layers, and in all steps of one token.
    private static Tensor Rows(int batch, int tokens, bool ofEach, Device device)
    {
        if (t_rows is not null && t_shape == (batch, tokens, ofEach, device.type, device.index))
        {
            return t_rows;
        }

        using IDisposable mode = inference_mode(false);
        using DisposeScope scope = NewDisposeScope();
        // Computed on the device: an upload would wait for it.
        Tensor counted = ones(ofEach ? batch * tokens : tokens, dtype: ScalarType.Int32, device: device).cumsum(0, ScalarType.Int32).sub_(Scalars.One);
        t_rows?.Dispose();
        t_rows = (ofEach ? counted.reshape(batch, tokens) : counted.expand(batch, tokens).contiguous()).DetachFromDisposeScope();
        t_shape = (batch, tokens, ofEach, device.type, device.index);
        return t_rows;
    }

    /// <summary>Channel 2i together with 2i + 1, computed in f32; x [batch, n, heads, head_dim], turns complex [n, head_dim / 2].</summary>
    internal static Tensor Interleaved(Tensor x, Tensor turns)
    {
        long[] shape = x.Sizes();
        Tensor pairs = x.to(ScalarType.Float32).reshape(shape[0], shape[1], shape[2], shape[3] / 2, 2).view_as_complex();
        return (pairs * turns.to(x.device).unsqueeze(0).unsqueeze(2)).view_as_real().reshape(shape).to(x.dtype);
    }
}
