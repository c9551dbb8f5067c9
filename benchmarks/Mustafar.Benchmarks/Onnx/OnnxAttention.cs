using Microsoft.ML.OnnxRuntime;
using static TorchSharp.torch;

namespace Mustafar.Benchmarks.Onnx;

/// <summary>
/// A decode step by ONNX Runtime's GroupQueryAttention on the CPU, over a cache of Float32 or of 8- or 4-bit integers with a scale per
/// channel. The cache is updated in place.
/// </summary>
internal sealed class OnnxAttention : IDisposable
{
    private readonly InferenceSession _session;
    private readonly RunOptions _run = new();
    private readonly List<IDisposable> _held = [];
    private readonly Dictionary<string, OrtValue> _inputs = [];
    private readonly Dictionary<string, OrtValue> _outputs = [];
    private readonly float[] _output;
    private readonly long[] _outputShape;

    /// <summary>A step whose query has the position of the last token.</summary>
    /// <param name="query">[batch, num_heads, 1, head_dim].</param>
    /// <param name="keys">[batch, num_kv_heads, tokens, head_dim]; <paramref name="values"/> have the same shape.</param>
    /// <param name="values">The values.</param>
    /// <param name="bits">32, 8 or 4.</param>
    /// <param name="threads">Threads of the session.</param>
    internal OnnxAttention(Tensor query, Tensor keys, Tensor values, int bits, int threads)
    {
        using var scope = NewDisposeScope();
        long[] shape = keys.shape;
        (long batch, long kvHeads, long tokens, long headDim) = (shape[0], shape[1], shape[2], shape[3]);
        _outputShape = query.shape;
        _output = new float[query.numel()];
        long heads = query.shape[1];
        bool quantized = bits < 32;
        int cacheType = bits switch { 32 => OnnxModel.Float, 8 => OnnxModel.Int8, _ => OnnxModel.UInt8 };
        long[] cacheShape = [batch, kvHeads, tokens, bits == 4 ? headDim / 2 : headDim];
        OnnxModel.Value?[] inputs =
        [
            new("query", OnnxModel.Float, batch, 1, heads * headDim), new("key", OnnxModel.Float, batch, 1, kvHeads * headDim),
            new("value", OnnxModel.Float, batch, 1, kvHeads * headDim), new("past_key", cacheType, cacheShape), new("past_value", cacheType, cacheShape),
            new("seqlens_k", OnnxModel.Int32, batch), new("total_sequence_length", OnnxModel.Int32, 1),
        ];
        (string, object)[] attributes = [("num_heads", heads), ("kv_num_heads", kvHeads)];
        if (quantized)
        {
            OnnxModel.Value Scale(string name) => new(name, OnnxModel.Float, 1, kvHeads, 1, headDim);
            inputs = [.. inputs, null, null, null, null, null, Scale("k_scale"), Scale("v_scale")];
            attributes = [.. attributes, ("k_quant_type", "PER_CHANNEL"), ("v_quant_type", "PER_CHANNEL"), ("kv_cache_bit_width", (long)bits)];
        }

        OnnxModel.Value[] outputs =
            [new("output", OnnxModel.Float, batch, 1, heads * headDim), new("present_key", cacheType, cacheShape), new("present_value", cacheType, cacheShape)];
        using SessionOptions options = new() { IntraOpNumThreads = threads, InterOpNumThreads = 1 };
        // Threads that spin after a step would take time from what is measured next.
        options.AddSessionConfigEntry("session.intra_op.allow_spinning", "0");
        _session = new InferenceSession(OnnxModel.Of("GroupQueryAttention", inputs, outputs, attributes), options);

        AddInput("query", Numbers(query), [batch, 1, heads * headDim]);
        AddInput("key", Numbers(keys.narrow(2, tokens - 1, 1)), [batch, 1, kvHeads * headDim]);
        AddInput("value", Numbers(values.narrow(2, tokens - 1, 1)), [batch, 1, kvHeads * headDim]);
        AddInput("seqlens_k", Enumerable.Repeat((int)tokens - 1, (int)batch).ToArray(), [batch]);
        AddInput("total_sequence_length", new[] { (int)tokens }, [1]);
        AddCache("key", "k_scale", keys, bits, cacheShape);
        AddCache("value", "v_scale", values, bits, cacheShape);
        _outputs["output"] = Hold(_output, [batch, 1, heads * headDim]);
    }

    /// <summary>The output of the last step, Float32 [batch, num_heads, 1, head_dim].</summary>
    internal Tensor Output => tensor(_output).reshape(_outputShape);

    /// <summary>Computes the step.</summary>
    internal void Step() => _session.Run(_run, _inputs.Keys, _inputs.Values, _outputs.Keys, _outputs.Values);

    public void Dispose()
    {
        _held.ForEach(value => value.Dispose());
        _run.Dispose();
        _session.Dispose();
    }

    // The same memory is input and output.
    private void AddCache(string name, string scaleName, Tensor rows, int bits, long[] shape)
    {
        rows = rows.to(ScalarType.Float32);
        OrtValue cache;
        if (bits == 32)
        {
            cache = Hold(Numbers(rows), shape);
        }
        else
        {
            int most = bits == 8 ? 127 : 7;
            Tensor scales = rows.abs().amax([0, 2], keepdim: true).div(most);
            Tensor integers = rows.div(scales).round().clamp(-most, most);
            AddInput(scaleName, Numbers(scales), [1, shape[1], 1, rows.shape[3]]);
            cache = bits == 8
                ? Hold(integers.to(ScalarType.Int8).contiguous().data<sbyte>().ToArray(), shape)
                : Hold(Packed(integers.add(8).to(ScalarType.Byte).contiguous().data<byte>().ToArray()), shape);
        }

        _inputs[$"past_{name}"] = cache;
        _outputs[$"present_{name}"] = cache;
    }

    // Two neighbouring channels per byte, the first in the low bits.
    private static byte[] Packed(byte[] numbers)
    {
        byte[] packed = new byte[numbers.Length / 2];
        for (int i = 0; i < packed.Length; i++)
        {
            packed[i] = (byte)(numbers[2 * i] | numbers[(2 * i) + 1] << 4);
        }

        return packed;
    }

    private static float[] Numbers(Tensor tensor) => tensor.to(ScalarType.Float32).contiguous().data<float>().ToArray();

    private void AddInput<T>(string name, T[] data, long[] shape)
        where T : unmanaged => _inputs[name] = Hold(data, shape);

    private OrtValue Hold<T>(T[] data, long[] shape)
        where T : unmanaged
    {
        OrtValue value = OrtValue.CreateTensorValueFromMemory(data, shape);
        _held.Add(value);
        return value;
    }
}
