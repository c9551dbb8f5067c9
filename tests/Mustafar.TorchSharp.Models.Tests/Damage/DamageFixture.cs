using System.Diagnostics;
using System.Globalization;
using System.Text;
using System.Text.Json.Nodes;
using Mustafar.Tests.Llama;

namespace Mustafar.Tests.Damage;

/// <summary>Changes a file of a small checkpoint at random, again and again: it is read, or refused with
/// <see cref="UnusableFileException"/>, and nothing else happens.</summary>
/// <remarks>
/// MUSTAFAR_DAMAGED_FILES sets how many files each test makes, and MUSTAFAR_DAMAGED_SEED the first seed; a failure names the seed of its
/// file, which alone makes the same file again.
/// </remarks>
public abstract class DamageFixture
{
    private static readonly TimeSpan s_longest = TimeSpan.FromSeconds(20);
    private static readonly int s_files = Setting("MUSTAFAR_DAMAGED_FILES", 200);
    private static readonly int s_firstSeed = Setting("MUSTAFAR_DAMAGED_SEED", 1);

    private TemporaryDirectory _directory = null!;

    [SetUp]
    public void MakeDirectory() => _directory = new TemporaryDirectory().WithTinyCheckpoint();

    [TearDown]
    public void DeleteDirectory() => _directory.Dispose();

    /// <summary>Where the checkpoint is.</summary>
    private protected string Folder => _directory.Path;

    /// <summary>The path of a file in the checkpoint.</summary>
    private protected string PathOf(string name) => _directory.File(name);

    /// <summary>Changes a JSON file.</summary>
    /// <param name="name">The file; it begins with what is in it.</param>
    /// <param name="read">Reads it.</param>
    /// <param name="more">An object of what else such a file may hold.</param>
    private protected void ChangeJson(string name, Action read, string more)
    {
        string path = PathOf(name);
        JsonObject root = File.Exists(path) ? JsonNode.Parse(File.ReadAllText(path))!.AsObject() : [];
        foreach ((string key, JsonNode? value) in JsonNode.Parse(more)!.AsObject())
        {
            root[key] = value?.DeepClone();
        }

        File.WriteAllText(path, root.ToJsonString());
        Change(name, read, WithOtherJson(path));
    }

    /// <summary>Changes a file.</summary>
    /// <param name="name">The file.</param>
    /// <param name="read">Reads it.</param>
    /// <param name="change">Makes other bytes of it.</param>
    private protected void Change(string name, Action read, Func<byte[], Random, byte[]> change)
    {
        string path = PathOf(name);
        byte[] original = File.ReadAllBytes(path);
        read();
        int refused = 0;
        for (int seed = s_firstSeed; seed < s_firstSeed + s_files; seed++)
        {
            byte[] changed = change(original, new Random(seed));
            File.WriteAllBytes(path, changed);
            long start = Stopwatch.GetTimestamp();
            try
            {
                read();
            }
            catch (Exception exception) when (exception is UnusableFileException or FileNotFoundException)
            {
                refused++;
                Assert.That(exception.Message, Does.Contain(Folder), $"seed {seed}");
            }
            catch (Exception exception)
            {
                Assert.Fail($"seed {seed}: {exception}\n{Encoding.UTF8.GetString(changed.AsSpan(0, Math.Min(changed.Length, 3000)))}");
            }

            Assert.That(Stopwatch.GetElapsedTime(start), Is.LessThan(s_longest), $"seed {seed} makes a file that takes too long");
        }

        Assert.That(refused, Is.InRange(s_files / 20, s_files - 1), "the changes reach what is read, and some files are still good");
    }

    /// <summary>Of three files one is no JSON any more.</summary>
    private protected static Func<byte[], Random, byte[]> WithOtherJson(string path)
    {
        DamagedJson json = new(File.ReadAllText(path));
        return (bytes, random) => random.Next(3) == 0 ? DamagedBytes.Change(bytes, random) : Encoding.UTF8.GetBytes(json.Change(random));
    }

    /// <summary>Of three files two have a header of the right length and, where there is one, the right checksum.</summary>
    private protected static Func<byte[], Random, byte[]> WithOtherHeader(string path)
    {
        (string header, byte[] data) = SafetensorsText.Parts(File.ReadAllBytes(path));
        DamagedJson json = new(header);
        byte[] start = Encoding.UTF8.GetBytes(header);
        return (bytes, random) => random.Next(6) switch
        {
            0 or 1 => DamagedBytes.Change(bytes, random),
            2 => SafetensorsText.Sealed(Encoding.UTF8.GetString(DamagedBytes.Change(start, random)), data),
            3 => SafetensorsText.Sealed(header, DamagedBytes.Change(data, random)),
            _ => SafetensorsText.Sealed(json.Change(random), data),
        };
    }

    private static int Setting(string name, int otherwise) =>
        Environment.GetEnvironmentVariable(name) is string text ? int.Parse(text, CultureInfo.InvariantCulture) : otherwise;
}
