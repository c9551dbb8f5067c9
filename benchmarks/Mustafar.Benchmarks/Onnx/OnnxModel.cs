using Google.Protobuf;

namespace Mustafar.Benchmarks.Onnx;

/// <summary>Writes an ONNX model with a single node: the messages of onnx.proto, field by field.</summary>
internal static class OnnxModel
{
    /// <summary>An input or output tensor.</summary>
    internal sealed record Value(string Name, int ElementType, params long[] Shape);

    internal const int Float = 1, UInt8 = 2, Int8 = 3, Int32 = 6;

    /// <summary>The model's bytes.</summary>
    /// <param name="operation">An operator of the domain com.microsoft.</param>
    /// <param name="inputs">Its inputs in order; null for one that is left out.</param>
    /// <param name="outputs">Its outputs in order.</param>
    /// <param name="attributes">Its attributes, each a long or a string.</param>
    internal static byte[] Of(string operation, Value?[] inputs, Value[] outputs, (string Name, object Value)[] attributes)
    {
        byte[] node = Message(stream =>
        {
            Array.ForEach(inputs, input => Text(stream, 1, input?.Name ?? ""));
            Array.ForEach(outputs, output => Text(stream, 2, output.Name));
            Text(stream, 4, operation);
            Array.ForEach(attributes, attribute => Bytes(stream, 5, Attribute(attribute.Name, attribute.Value)));
            Text(stream, 7, "com.microsoft");
        });
        byte[] graph = Message(stream =>
        {
            Bytes(stream, 1, node);
            Text(stream, 2, operation);
            Array.ForEach([.. inputs.OfType<Value>()], input => Bytes(stream, 11, Info(input)));
            Array.ForEach(outputs, output => Bytes(stream, 12, Info(output)));
        });
        return Message(stream =>
        {
            Number(stream, 1, 10); // the format's version
            Bytes(stream, 7, graph);
            Bytes(stream, 8, OperatorSet("", 21));
            Bytes(stream, 8, OperatorSet("com.microsoft", 1));
        });
    }

    private static byte[] OperatorSet(string domain, long version) => Message(stream =>
    {
        Text(stream, 1, domain);
        Number(stream, 2, version);
    });

    private static byte[] Attribute(string name, object value) => Message(stream =>
    {
        Text(stream, 1, name);
        if (value is string text)
        {
            Text(stream, 4, text);
            Number(stream, 20, 3);
        }
        else
        {
            Number(stream, 3, (long)value);
            Number(stream, 20, 2);
        }
    });

    private static byte[] Info(Value value)
    {
        byte[] shape = Message(stream => Array.ForEach(value.Shape, size => Bytes(stream, 1, Message(dimension => Number(dimension, 1, size)))));
        byte[] tensor = Message(stream =>
        {
            Number(stream, 1, value.ElementType);
            Bytes(stream, 2, shape);
        });
        return Message(stream =>
        {
            Text(stream, 1, value.Name);
            Bytes(stream, 2, Message(type => Bytes(type, 1, tensor)));
        });
    }

    private static byte[] Message(Action<CodedOutputStream> write)
    {
        using MemoryStream memory = new();
        using (CodedOutputStream stream = new(memory, leaveOpen: true))
        {
            write(stream);
        }

        return memory.ToArray();
    }

    private static void Number(CodedOutputStream stream, int field, long value)
    {
        stream.WriteTag(field, WireFormat.WireType.Varint);
        stream.WriteInt64(value);
    }

    private static void Text(CodedOutputStream stream, int field, string value)
    {
        stream.WriteTag(field, WireFormat.WireType.LengthDelimited);
        stream.WriteString(value);
    }

    private static void Bytes(CodedOutputStream stream, int field, byte[] value)
    {
        stream.WriteTag(field, WireFormat.WireType.LengthDelimited);
        stream.WriteBytes(ByteString.CopyFrom(value));
    }
}
