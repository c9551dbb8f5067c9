namespace Mustafar.Tests.Storage;

/// <summary>What killed processes leave beside a file, and places that must not be replaced.</summary>
[TestFixture]
internal sealed class LeftoverFileTests
{
    private static readonly KeyValueShape s_shape = new() { NumKvHeads = 1, HeadDim = 64 };

    private TemporaryDirectory _directory = null!;

    private string Path => _directory.File("cache.safetensors");

    [SetUp]
    public void MakeDirectory() => _directory = new TemporaryDirectory();

    [TearDown]
    public void DeleteDirectory() => _directory.Dispose();

    [Test]
    public void The_next_save_and_the_next_load_remove_what_a_killed_save_left_and_nothing_else()
    {
        string[] others =
        [
            "cache.safetensors.tmp", "cache.safetensors.0123.tmp", $"other.{Guid.NewGuid():N}.tmp", $"cache.safetensors.{Guid.NewGuid():N}.bak",
            $"cache.safetensors.{new string('g', 32)}.tmp",
        ];
        foreach (string other in others)
        {
            File.WriteAllText(_directory.File(other), "kept");
        }

        using MustafarCache cache = new(1, s_shape, TorchSharp.torch.ScalarType.Float32);
        Leave();
        Leave();
        cache.Save(Path, "model");
        Assert.That(Names(), Is.EquivalentTo(others.Append("cache.safetensors")));
        Leave();
        cache.Load(Path, "model");
        Assert.That(Names(), Is.EquivalentTo(others.Append("cache.safetensors")));
    }

    [Test]
    public void What_another_save_is_writing_stays()
    {
        AtomicFile.Write(Path, stream =>
        {
            AtomicFile.Write(Path, inner => inner.WriteByte(1));
            AtomicFile.RemoveLeftovers(Path);
            stream.WriteByte(2);
        });
        Assert.That(Names(), Is.EqualTo(new[] { "cache.safetensors" }));
        Assert.That(File.ReadAllBytes(Path), Is.EqualTo(new byte[] { 2 }));
    }

    [Test]
    public void Trying_a_path_changes_nothing()
    {
        MustafarCacheFile.CheckSavePath(Path);
        Assert.That(Names(), Is.Empty);
        File.WriteAllText(Path, "old");
        MustafarCacheFile.CheckSavePath(Path);
        using (Assert.EnterMultipleScope())
        {
            Assert.That(File.ReadAllText(Path), Is.EqualTo("old"));
            Assert.That(() => MustafarCacheFile.CheckSavePath(_directory.File("none/file")), Throws.TypeOf<DirectoryNotFoundException>()
                .With.Message.Contains(_directory.File("none")));
            Assert.That(() => MustafarCacheFile.CheckSavePath(_directory.Path), Throws.TypeOf<IOException>().With.Message.Contains("a directory"));
        }
    }

    [Test]
    [Platform("Linux")]
    public void Neither_a_pipe_nor_a_device_is_read_or_replaced()
    {
        NamedPipe.Make(Path);
        File.CreateSymbolicLink(_directory.File("null"), "/dev/null");
        using MustafarCache cache = new(1, s_shape, TorchSharp.torch.ScalarType.Float32);
        foreach ((string path, string kind) in (ReadOnlySpan<(string, string)>)
            [(Path, "a named pipe"), ("/dev/null", "a device"), (_directory.File("null"), "a device")])
        {
            Assert.That(() => MustafarCacheFile.CheckSavePath(path), Throws.TypeOf<IOException>().With.Message.Contains(kind));
            Assert.That(() => cache.Save(path, "model"), Throws.TypeOf<IOException>().With.Message.Contains(kind));
            Assert.That(() => cache.Load(path, "model"), Throws.TypeOf<IOException>().With.Message.Contains(kind));
        }

        Assert.That(Names(), Is.EquivalentTo(new[] { "cache.safetensors", "null" }));
    }

    [Test]
    [Platform("Linux")]
    public void A_symbolic_link_stays_and_its_file_is_written()
    {
        Directory.CreateDirectory(_directory.File("there"));
        string target = _directory.File("there/target");
        File.CreateSymbolicLink(Path, target);
        for (byte content = 1; content <= 2; content++)
        {
            AtomicFile.Write(Path, stream => stream.WriteByte(content));
            Assert.That(File.ReadAllBytes(target), Is.EqualTo(new[] { content }));
            Assert.That(new FileInfo(Path).LinkTarget, Is.EqualTo(target));
        }
    }

    private void Leave() => File.WriteAllBytes($"{Path}.{Guid.NewGuid():N}.tmp", new byte[10]);

    private string[] Names() => [.. Directory.GetFileSystemEntries(_directory.Path).Select(path => System.IO.Path.GetFileName(path)!)];
}
