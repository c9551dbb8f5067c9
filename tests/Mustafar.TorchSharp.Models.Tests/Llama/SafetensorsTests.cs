using System.Text;
using Mustafar.Models.Checkpoint;
using Mustafar.Storage;
using static TorchSharp.torch;

namespace Mustafar.Tests.Llama;

[TestFixture]
public sealed class SafetensorsTests
{
    private const string TwoTensors = """
        { "__metadata__": { "format": "pt" },
          "b": { "dtype": "BF16", "shape": [2, 3], "data_offsets": [8, 20] },
          "a": { "dtype": "F32", "shape": [2], "data_offsets": [0, 8] } }
        """;

    private TemporaryDirectory _directory = null!;

    [SetUp]
    public void MakeDirectory() => _directory = new TemporaryDirectory();

    [TearDown]
    public void DeleteDirectory() => _directory.Dispose();

    [Test]
    public void ReadsEntriesAndData()
    {
        byte[] data = [.. Enumerable.Range(1, 20).Select(i => (byte)i)];
        using SafetensorsFile file = new(Write(TwoTensors, data));
        SafetensorsEntry b = file.Entries["b"];
        using (Assert.EnterMultipleScope())
        {
            Assert.That(file.Entries.Keys, Is.EquivalentTo(new[] { "a", "b" }));
            Assert.That(b.DType, Is.EqualTo(ScalarType.BFloat16));
            Assert.That(b.Shape, Is.EqualTo(new long[] { 2, 3 }));
            Assert.That(b.ByteCount, Is.EqualTo(12));
            Assert.That(file.Read(b, 0, 12).ToArray(), Is.EqualTo(data[8..]));
            Assert.That(file.Read(b, 10, 2).ToArray(), Is.EqualTo(data[18..]));
            Assert.That(() => file.Read(b, 11, 2), Throws.TypeOf<ArgumentOutOfRangeException>());
            Assert.That(() => file.Read(b, -1, 2), Throws.TypeOf<ArgumentOutOfRangeException>());
        }
    }

    [Test]
    public void ReadsScalarsAndEmptyTensors()
    {
        const string Header = """
            { "empty": { "dtype": "F16", "shape": [0, 5], "data_offsets": [0, 0] },
              "scalar": { "dtype": "F32", "shape": [], "data_offsets": [0, 4] } }
            """;
        using SafetensorsFile file = new(Write(Header, new byte[4]));
        using (Assert.EnterMultipleScope())
        {
            Assert.That(file.Entries["empty"].ByteCount, Is.Zero);
            Assert.That(file.Entries["scalar"].ByteCount, Is.EqualTo(4));
        }
    }

    [Test]
    public void RefusesATruncatedFile()
    {
        string path = Write(TwoTensors, new byte[15]);
        CheckpointException error = Refused(path);
        using (Assert.EnterMultipleScope())
        {
            Assert.That(error.File, Is.EqualTo(path));
            Assert.That(error.Tensor, Is.EqualTo("b"));
            Assert.That(error.Message, Does.Contain("expected 12 bytes").And.Contain("7"));
        }
    }

    [Test]
    public void RefusesATruncatedHeader()
    {
        string path = Write(TwoTensors, new byte[20]);
        byte[] bytes = File.ReadAllBytes(path);
        File.WriteAllBytes(path, bytes[..40]);
        Assert.That(Refused(path).Message, Does.Contain("truncated"));
        File.WriteAllBytes(path, bytes[..5]);
        Assert.That(Refused(path).Message, Does.Contain("at least 8 bytes"));
    }

    [Test]
    public void RefusesAFileOfAnotherFormat()
    {
        string path = _directory.File("model.safetensors");
        File.WriteAllText(path, "<!DOCTYPE html><title>Not found</title>");
        Assert.That(Refused(path).Message, Does.Contain("another format"));
    }

    [TestCase("not json", 0, "expected JSON", TestName = "not JSON")]
    [TestCase("[]", 0, "an array", TestName = "an array")]
    [TestCase("""{ "a": { "shape": [1], "data_offsets": [0, 4] } }""", 4, "dtype", TestName = "no dtype")]
    [TestCase("""{ "a": { "dtype": "F33", "shape": [1], "data_offsets": [0, 4] } }""", 4, "F33", TestName = "unknown dtype")]
    [TestCase("""{ "a": { "dtype": "F32", "data_offsets": [0, 4] } }""", 4, "shape", TestName = "no shape")]
    [TestCase("""{ "a": { "dtype": "F32", "shape": [-1], "data_offsets": [0, 4] } }""", 4, "-1", TestName = "negative size")]
    [TestCase("""{ "a": { "dtype": "F32", "shape": [1.5], "data_offsets": [0, 4] } }""", 4, "1.5", TestName = "fraction")]
    [TestCase("""{ "a": { "dtype": "F32", "shape": [1], "data_offsets": [4, 0] } }""", 4, "data_offsets", TestName = "end before begin")]
    [TestCase("""{ "a": { "dtype": "F32", "shape": [1], "data_offsets": [0] } }""", 4, "data_offsets", TestName = "one offset")]
    [TestCase("""{ "a": { "dtype": "F32", "shape": [2], "data_offsets": [0, 4] } }""", 4, "expected 8 bytes", TestName = "size differs")]
    [TestCase("""{ "a": { "dtype": "F32", "shape": [4294967296, 4294967296], "data_offsets": [0, 4] } }""", 4, "larger than any", TestName = "overflow")]
    [TestCase("""{ "a": { "dtype": "F32", "shape": [1], "data_offsets": [9223372036854775800, 9223372036854775804] } }""", 4, "starts at", TestName = "offset past any file")]
    [TestCase("""{ "a": { "dtype": "F32", "shape": [1], "data_offsets": [4, 8] } }""", 8, "gap", TestName = "gap")]
    [TestCase("""{ "a": { "dtype": "F32", "shape": [1], "data_offsets": [0, 4] }, "b": { "dtype": "F32", "shape": [1], "data_offsets": [2, 6] } }""", 6, "overlaps", TestName = "overlap")]
    [TestCase("""{ "a": { "dtype": "F32", "shape": [1], "data_offsets": [0, 4] } }""", 9, "has", TestName = "bytes left over")]
    [TestCase("""{ "a": { "dtype": "F32", "shape": [1], "data_offsets": [0, 4] }, "a": { "dtype": "F32", "shape": [1], "data_offsets": [4, 8] } }""", 8, "once", TestName = "name twice")]
    public void RefusesADamagedHeader(string header, int dataBytes, string expected) =>
        Assert.That(Refused(Write(header, new byte[dataBytes])).Message, Does.Contain(expected));

    [Test]
    public void RefusesUseAfterDispose()
    {
        SafetensorsFile file = new(Write(TwoTensors, new byte[20]));
        file.Dispose();
        file.Dispose();
        Assert.That(() => file.Read(file.Entries["a"], 0, 1), Throws.TypeOf<ObjectDisposedException>());
    }

    [Test]
    public void RefusesAMissingFile() =>
        Assert.That(() => new SafetensorsFile(_directory.File("none")), Throws.TypeOf<FileNotFoundException>());

    private string Write(string header, byte[] data)
    {
        string path = _directory.File("model.safetensors");
        byte[] json = Encoding.UTF8.GetBytes(header);
        File.WriteAllBytes(path, [.. BitConverter.GetBytes((long)json.Length), .. json, .. data]);
        return path;
    }

    private static CheckpointException Refused(string path)
    {
        CheckpointException? error = Assert.Throws<CheckpointException>(() => new SafetensorsFile(path).Dispose());
        return error!;
    }
}
