using TorchSharp;
using Mustafar.Tests.Oracle;
using static TorchSharp.torch;

namespace Mustafar.Tests.Storage;

/// <summary>Caches go to streams of all kinds, tell how far they are, and stop when they are told to.</summary>
internal sealed class CacheStreamTests
{
    private const int Layers = 3;

    private TemporaryDirectory _directory = null!;

    [SetUp]
    public void MakeDirectory() => _directory = new TemporaryDirectory();

    [TearDown]
    public void DeleteDirectory() => _directory.Dispose();

    [Test]
    public async Task A_stream_has_what_a_file_has([Values] bool seeks, [Values] bool asynchronous)
    {
        using MustafarModelCache saved = New(), restored = New();
        int[] sequences = [Filled(saved, 300), Filled(saved, 97)];
        string path = Path.Combine(_directory.Path, "file");
        MustafarCacheFile.Save(path, saved, sequences, "model", new Dictionary<string, string> { ["title"] = "a" });
        using MemoryStream memory = new();
        using Stream stream = seeks ? memory : new OneWay(memory);
        memory.Write("before"u8);
        if (asynchronous)
        {
            await MustafarCacheFile.SaveAsync(stream, saved, sequences, "model", new Dictionary<string, string> { ["title"] = "a" });
        }
        else
        {
            MustafarCacheFile.Save(stream, saved, sequences, "model", new Dictionary<string, string> { ["title"] = "a" });
        }

        Assert.That(memory.ToArray().AsSpan(6).SequenceEqual(File.ReadAllBytes(path)));
        memory.Position = 6;
        int[] into = [restored.AddSequence(), restored.AddSequence()];
        IReadOnlyDictionary<string, string> metadata = asynchronous
            ? await MustafarCacheFile.LoadAsync(stream, restored, into, "model")
            : MustafarCacheFile.Load(stream, restored, into, "model");
        Assert.That(metadata, Is.EqualTo(new Dictionary<string, string> { ["title"] = "a" }));
        Assert.That(into.Select(restored.LengthOf), Is.EqualTo(new[] { 300, 97 }));
        Assert.That(memory.CanRead, "it stays open");
        using var scope = NewDisposeScope();
        Tensor token = randn(2, 2, 1, 64);
        using CacheStep one = saved.BeginStep(sequences, 1), other = restored.BeginStep(into, 1);
        for (int layer = 0; layer < Layers; layer++)
        {
            Assert.That(Values.Of(other.Attend(layer, token, token, token)), Is.EqualTo(Values.Of(one.Attend(layer, token, token, token))));
        }
    }

    [Test]
    public void Progress_goes_from_nothing_to_all()
    {
        using MustafarModelCache saved = New(), restored = New();
        int sequence = Filled(saved, 2000);
        Shares saving = new(), loading = new();
        using MemoryStream stream = new();
        MustafarCacheFile.Save(stream, saved, [sequence], "model", progress: saving);
        stream.Position = 0;
        MustafarCacheFile.Load(stream, restored, [restored.AddSequence()], "model", loading);
        foreach (Shares shares in new[] { saving, loading })
        {
            Assert.That(shares.Seen, Is.Ordered.And.Unique.And.Count.GreaterThan(20));
            Assert.That((shares.Seen[0], shares.Seen[^1]), Is.EqualTo((0.0, 1.0)));
        }
    }

    [Test]
    public void What_is_cancelled_leaves_no_trace([Values(0.0, 0.3, 0.8)] double at)
    {
        using MustafarModelCache saved = New(), restored = New();
        int sequence = Filled(saved, 2000), into = restored.AddSequence();
        string path = Path.Combine(_directory.Path, "file");
        File.WriteAllText(path, "as it was");
        Assert.That(
            () => Cancelled(at, (progress, token) => MustafarCacheFile.Save(path, saved, [sequence], "model", null, progress, token)),
            Throws.InstanceOf<OperationCanceledException>());
        Assert.That(File.ReadAllText(path), Is.EqualTo("as it was"));
        Assert.That(Directory.GetFiles(_directory.Path), Has.Length.EqualTo(1));
        MustafarCacheFile.Save(path, saved, [sequence], "model");
        Assert.That(
            () => Cancelled(at, (progress, token) => MustafarCacheFile.Load(path, restored, [into], "model", progress, token)),
            Throws.InstanceOf<OperationCanceledException>());
        Assert.That((restored.LengthOf(into), restored.Usage.UsedBytes), Is.EqualTo((0, 0L)));
        MustafarCacheFile.Load(path, restored, [into], "model");
        Assert.That(restored.LengthOf(into), Is.EqualTo(2000));
    }

    [Test]
    public void A_damaged_or_short_stream_and_one_of_the_wrong_kind_are_refused()
    {
        using MustafarModelCache saved = New(), restored = New();
        int sequence = Filled(saved, 200), into = restored.AddSequence();
        using MemoryStream stream = new();
        MustafarCacheFile.Save(stream, saved, [sequence], "model");
        byte[] bytes = stream.ToArray();
        Assert.That(
            () => MustafarCacheFile.Load(new MemoryStream(bytes[..^1]), restored, [into], "model"),
            Throws.TypeOf<MustafarCacheFileException>().With.Message.StartsWith("the stream: "));
        bytes[^5] ^= 1;
        Assert.That(
            () => MustafarCacheFile.Load(new OneWay(new MemoryStream(bytes)), restored, [into], "model"),
            Throws.TypeOf<MustafarCacheFileException>().With.Message.Contains("damaged"));
        Assert.That(
            () => MustafarCacheFile.Save(new MemoryStream(bytes, writable: false), saved, [sequence], "model"),
            Throws.ArgumentException.With.Property("ParamName").EqualTo("stream"));
        Assert.That(restored.LengthOf(into), Is.Zero);
    }

    [Test]
    public void A_fingerprint_is_that_of_the_weights_alone()
    {
        using var scope = NewDisposeScope();
        using IDisposable noGrad = no_grad();
        manual_seed(1);
        using nn.Module<Tensor, Tensor> model = nn.Sequential(("a", nn.Linear(300, 5)), ("b", nn.Linear(5, 1)));
        using nn.Module<Tensor, Tensor> same = nn.Sequential(("a", nn.Linear(300, 5)), ("b", nn.Linear(5, 1)));
        string fingerprint = MustafarCacheFile.FingerprintOf(model);
        Assert.That(fingerprint, Has.Length.EqualTo(64));
        Assert.That(MustafarCacheFile.FingerprintOf(same), Is.Not.EqualTo(fingerprint), "other weights");
        same.load_state_dict(model.state_dict());
        Assert.That(MustafarCacheFile.FingerprintOf(same), Is.EqualTo(fingerprint));
        Assert.That(MustafarCacheFile.FingerprintOf(same.to(ScalarType.BFloat16)), Is.Not.EqualTo(fingerprint));
        using nn.Module<Tensor, Tensor> empty = nn.ReLU();
        Assert.That(() => MustafarCacheFile.FingerprintOf(empty), Throws.ArgumentException);
    }

    private static MustafarModelCache New() => new(Layers, new() { NumKvHeads = 2, HeadDim = 64 }, ScalarType.Float32);

    private static int Filled(MustafarModelCache cache, int length)
    {
        using var scope = NewDisposeScope();
        int sequence = cache.AddSequence();
        using CacheStep step = cache.BeginStep([sequence], length);
        for (int layer = 0; layer < Layers; layer++)
        {
            Tensor tokens = randn(1, 2, length, 64);
            _ = step.Attend(layer, tokens, tokens, tokens);
        }

        step.Commit();
        return sequence;
    }

    private static void Cancelled(double at, Action<IProgress<double>, CancellationToken> run)
    {
        using CancellationTokenSource source = new();
        run(new Shares(share =>
        {
            if (share >= at)
            {
                source.Cancel();
            }
        }), source.Token);
    }

    private sealed class Shares(Action<double>? report = null) : IProgress<double>
    {
        internal List<double> Seen { get; } = [];

        public void Report(double value)
        {
            Seen.Add(value);
            report?.Invoke(value);
        }
    }

    // As a connection: it can be read and written, but has no place.
    private sealed class OneWay(Stream inner) : Stream
    {
        public override bool CanRead => true;

        public override bool CanSeek => false;

        public override bool CanWrite => true;

        public override long Length => throw new NotSupportedException();

        public override long Position
        {
            get => throw new NotSupportedException();
            set => throw new NotSupportedException();
        }

        public override int Read(byte[] buffer, int offset, int count) => inner.Read(buffer, offset, Math.Min(count, 1000));

        public override void Write(byte[] buffer, int offset, int count) => inner.Write(buffer, offset, count);

        public override void Flush() => inner.Flush();

        public override long Seek(long offset, SeekOrigin origin) => throw new NotSupportedException();

        public override void SetLength(long value) => throw new NotSupportedException();
    }
}
