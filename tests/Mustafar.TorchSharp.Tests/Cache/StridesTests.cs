using Mustafar.Tests.Oracle;
using static TorchSharp.torch;

namespace Mustafar.Tests.Cache;

/// <summary>Tensors as they come out of models: slices, transposed, expanded, of autograd. The numbers decide, not how they lie.</summary>
[TestFixtureSource(typeof(TestDevices), nameof(TestDevices.All))]
internal sealed class StridesTests(string device)
{
    private static readonly KeyValueShape s_shape = new() { NumKvHeads = 3, HeadDim = 80 };
    private static readonly MustafarOptions Options = new() { LocalWindow = 16, GroupSize = 32 };

    private static readonly Dictionary<string, Func<Tensor, Tensor>> Views = new()
    {
        // What a projection gives: [batch, tokens, heads, head_dim].
        ["tokens before heads"] = tensor => tensor.transpose(1, 2).contiguous().transpose(1, 2),
        ["head_dim before tokens"] = tensor => tensor.transpose(2, 3).contiguous().transpose(2, 3),
        ["batch last"] = tensor => tensor.permute(1, 2, 3, 0).contiguous().permute(3, 0, 1, 2),
        ["slice of a larger tensor"] = tensor =>
            cat([full_like(tensor, double.NaN), tensor, full_like(tensor, double.NaN)], 3).narrow(3, tensor.shape[3], tensor.shape[3]),
        ["every other row"] = tensor => stack([tensor, full_like(tensor, double.NaN)], 3).select(3, 0),
        ["of autograd"] = tensor => tensor.clone().requires_grad_(true),
    };

    private static IEnumerable<string> ViewNames => Views.Keys;

    [Test]
    public void A_view_serves_like_its_copy(
        [ValueSource(nameof(ViewNames))] string name,
        [Values(1, 4, 70)] int count,
        [Values(ScalarType.Float32, ScalarType.BFloat16)] ScalarType dtype)
    {
        using var scope = NewDisposeScope();
        manual_seed(count);
        Func<Tensor, Tensor> view = Views[name];
        using MustafarCache copies = new(2, s_shape, dtype, new Device(device), Options);
        using MustafarCache views = new(2, s_shape, dtype, new Device(device), Options);
        for (int i = 0; i < 3; i++)
        {
            Tensor query = randn(2, 6, count, 80).to(dtype).to(device);
            Tensor keys = randn(2, 3, count, 80).to(dtype).to(device);
            Tensor values = randn(2, 3, count, 80).to(dtype).to(device);
            Tensor expected = copies.Forward(query, keys, values);
            Tensor actual = views.Forward(view(query), view(keys), view(values));
            Assert.That(actual.requires_grad, Is.False);
            // A view may lead torch to another of its kernels.
            double rounding = dtype == ScalarType.Float32 ? 1e-5 : 1e-2;
            Compare.Close(actual, expected, rounding, rounding, $"step {i}");
        }

        Tensor last = randn(2, 6, 2, 80).to(dtype).to(device);
        Compare.Same(views.Attend(view(last)), copies.Attend(last), "what is stored");
    }

    [Test]
    public void One_token_expanded_to_many_serves_like_its_copies()
    {
        using var scope = NewDisposeScope();
        manual_seed(1);
        using MustafarCache copies = New();
        using MustafarCache views = New();
        Tensor token = randn(1, 1, 1, 64).to(device).expand(2, 2, 90, 64);
        copies.Append(token.contiguous(), token.contiguous());
        views.Append(token, token);
        Tensor query = randn(1, 1, 1, 64).to(device).expand(2, 4, 1, 64);
        Compare.Same(views.Attend(query), copies.Attend(query.contiguous()), "expanded");
    }

    /// <summary>The caller's tensors are read and never written, and what is returned is the caller's own.</summary>
    [TestCase(1)]
    [TestCase(4)]
    [TestCase(70)]
    public void Inputs_stay_and_outputs_are_new(int count)
    {
        using var scope = NewDisposeScope();
        manual_seed(2);
        using MustafarCache cache = New();
        for (int i = 0; i < 2; i++)
        {
            Tensor[] inputs = [.. new[] { 4, 2, 2 }.Select(heads => randn(2, heads, count, 64).to(device))];
            Tensor[] copies = [.. inputs.Select(tensor => tensor.clone())];
            Tensor output = cache.Forward(inputs[0], inputs[1], inputs[2]);
            Tensor kept = output.clone();
            for (int t = 0; t < inputs.Length; t++)
            {
                Compare.Same(inputs[t], copies[t], $"input {t}");
                inputs[t].fill_(double.NaN);
            }

            cache.Forward(copies[0], copies[1], copies[2]);
            Compare.Same(output, kept, "output");
            Assert.That(Values.Of(cache.Attend(copies[0])), Is.All.Matches<float>(float.IsFinite));
        }
    }

    /// <summary>A cache's storage outlives the dispose scopes in which it grew, and results follow the usual rule of scopes.</summary>
    [Test]
    public void Scopes_take_results_but_never_the_storage()
    {
        using MustafarCache cache = New();
        Tensor output;
        using (var scope = NewDisposeScope())
        {
            manual_seed(3);
            Tensor x = randn(2, 2, 200, 64).to(device);
            cache.Append(x, x);
            output = cache.Attend(x.narrow(2, 0, 1));
        }

        Assert.That(output.IsInvalid, Is.True, "a result belongs to the scope in which it was made");
        using Tensor query = randn(2, 2, 1, 64).to(device);
        using Tensor again = cache.Attend(query);
        Assert.That(Values.Of(again), Is.All.Matches<float>(float.IsFinite));
        Assert.That(cache.Lengths, Is.All.EqualTo(200));
    }

    private MustafarCache New() => new(2, new() { NumKvHeads = 2, HeadDim = 64 }, ScalarType.Float32, new Device(device), Options);
}
