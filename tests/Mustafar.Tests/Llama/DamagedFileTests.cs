using System.Text;
using Mustafar.Examples.Llama.Generation;
using static TorchSharp.torch;

namespace Mustafar.Tests.Llama;

/// <summary>Files that were changed at random are read, or refused with <see cref="UnusableFileException"/>, and nothing else happens.</summary>
[TestFixture]
public sealed class DamagedFileTests
{
    private const int Runs = 400;

    // What JSON can hold, and what tends to be mistaken.
    private static readonly string[] s_pieces =
    [
        "null", "true", "-1", "0", "1e999", "-0.5", "2147483648", "99999999999999999999", "\"\"", "\"\\ud800\"", "[]", "{}", "[[1]]", "{", "}",
        "\"", ",", ":", "\\", "\u0000", "\uFEFF", "1.5", "\"64\"", "[0, 4]",
    ];

    private TemporaryDirectory _directory = null!;

    [SetUp]
    public void MakeDirectory() => _directory = new TemporaryDirectory().WithTinyCheckpoint();

    [TearDown]
    public void DeleteDirectory() => _directory.Dispose();

    [TestCase("config.json", 1)]
    [TestCase("generation_config.json", 2)]
    [TestCase("model.safetensors", 3)]
    [TestCase("model.safetensors.index.json", 4)]
    public void ACheckpointIsLoadedOrRefused(string name, int seed)
    {
        File.WriteAllText(
            _directory.File("generation_config.json"),
            """{ "do_sample": true, "temperature": 0.7, "top_k": 20, "top_p": 0.8, "eos_token_id": [256, 258], "repetition_penalty": 1.1 }""");
        if (name == "model.safetensors.index.json")
        {
            Shard();
        }

        int refused = Change(name, seed, headerOnly: name.EndsWith(".safetensors", StringComparison.Ordinal), () =>
            LanguageModel.Load(_directory.Path).Dispose());
        Assert.That(refused, Is.GreaterThan(Runs / 10), "the changes reach what is read");
    }

    [Test]
    public void ACacheIsLoadedOrRefusedAndStaysEmptyThen()
    {
        using (MustafarCache cache = New())
        {
            using Tensor tokens = randn(1, 1, 200, 64);
            cache.Forward(randn(1, 1, 200, 64), tokens, tokens).Dispose();
            cache.Save(_directory.File("cache"), "model");
        }

        int refused = Change("cache", 5, headerOnly: false, () =>
        {
            using MustafarCache cache = New();
            try
            {
                cache.Load(_directory.File("cache"), "model");
            }
            catch (UnusableFileException)
            {
                Assert.That(cache.Length, Is.Zero);
                throw;
            }
        });
        Assert.That(refused, Is.GreaterThan(Runs / 2));
        static MustafarCache New() => new(1, 1, 64, ScalarType.Float32);
    }

    // The number of files that were refused.
    private int Change(string name, int seed, bool headerOnly, Action read)
    {
        string path = _directory.File(name);
        byte[] original = File.ReadAllBytes(path);
        Random random = new(seed);
        int refused = 0;
        for (int run = 0; run < Runs; run++)
        {
            byte[] changed = Changed(original, headerOnly ? 1200 : original.Length, random);
            File.WriteAllBytes(path, changed);
            try
            {
                read();
            }
            catch (Exception exception) when (exception is UnusableFileException or FileNotFoundException)
            {
                refused++;
                Assert.That(exception.Message, Does.Contain(_directory.Path), $"seed {seed}, run {run}");
            }
            catch (Exception exception)
            {
                Assert.Fail($"seed {seed}, run {run}: {exception}\n{Encoding.UTF8.GetString(changed.AsSpan(0, Math.Min(changed.Length, 2000)))}");
            }
        }

        return refused;
    }

    private static byte[] Changed(byte[] original, int range, Random random)
    {
        List<byte> bytes = [.. original];
        for (int changes = random.Next(1, 4); changes > 0; changes--)
        {
            int at = random.Next(Math.Min(range, bytes.Count));
            switch (random.Next(5))
            {
                case 0:
                    bytes[at] = (byte)random.Next(256);
                    break;
                case 1:
                    bytes.RemoveRange(at, Math.Min(random.Next(1, 20), bytes.Count - at));
                    break;
                case 2:
                    bytes.InsertRange(at, Piece());
                    break;
                case 3 when random.Next(10) == 0:
                    bytes.RemoveRange(at, bytes.Count - at);
                    break;
                default:
                    // A value in place of a number or a text: what stands behind the next colon.
                    int colon = bytes.IndexOf((byte)':', at);
                    int end = colon < 0 ? -1 : bytes.FindIndex(colon, item => item is (byte)',' or (byte)'}' or (byte)'\n');
                    if (end > 0)
                    {
                        bytes.RemoveRange(colon + 1, end - colon - 1);
                        bytes.InsertRange(colon + 1, Piece());
                    }

                    break;
            }

            if (bytes.Count == 0)
            {
                break;
            }
        }

        return [.. bytes];

        byte[] Piece() => Encoding.UTF8.GetBytes(s_pieces[random.Next(s_pieces.Length)]);
    }

    private void Shard()
    {
        using Examples.Llama.Checkpoint.SafetensorsCheckpoint checkpoint = Examples.Llama.Checkpoint.SafetensorsCheckpoint.Open(_directory.Path);
        string map = string.Join(",\n", checkpoint.Names.Select(name => $"\"{name}\": \"model-00001-of-00001.safetensors\""));
        File.WriteAllText(_directory.File("model.safetensors.index.json"), $$"""{ "metadata": {}, "weight_map": { {{map}} } }""");
        File.Move(_directory.File("model.safetensors"), _directory.File("model-00001-of-00001.safetensors"));
    }
}
