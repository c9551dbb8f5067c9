using Mustafar.Tests.Oracle;
using static TorchSharp.torch;

namespace Mustafar.Tests.Ops;

[TestFixtureSource(typeof(TestDevices), nameof(TestDevices.All))]
internal sealed class RotateTests(string device)
{
    private static readonly ScalarType[] DTypes = [ScalarType.Float32, ScalarType.Float16, ScalarType.BFloat16];

    [TestCase(1, 1, 32, 8, 128, 128)]
    [TestCase(3, 5, 6, 2, 64, 64)]
    [TestCase(2, 4, 4, 4, 80, 32)]
    [TestCase(1, 7, 8, 1, 96, 96)]
    [TestCase(2, 1, 5, 5, 256, 128)]
    [TestCase(1, 2, 3, 1, 2, 2)]
    [TestCase(1, 3, 2, 1, 512, 510)]
    public void Parts_of_one_product_turn_by_their_positions(int batch, int tokens, int heads, int kvHeads, int headDim, int rotaryDim)
    {
        foreach (ScalarType dtype in DTypes)
        {
            foreach (bool tables in (bool[])[false, true])
            {
                foreach (bool normed in (bool[])[false, true])
                {
                    foreach (bool inPlace in (bool[])[false, true])
                    {
                        Case(dtype, batch, tokens, heads, kvHeads, headDim, rotaryDim, tables, normed, inPlace);
                    }
                }
            }
        }
    }

    [Test]
    public void A_position_that_tables_lack_is_refused_or_gives_NaN()
    {
        using var scope = NewDisposeScope();
        RotaryHeads heads = new(ones(1, 2, 2, 4, device: device), ones(1, 1, 2, 4, device: device));
        RotaryAngles angles = RotaryAngles.FromTables(ones(5, 2, device: device), ones(5, 2, device: device));
        foreach (int[] bad in (int[][])[[0, 5], [-1, 4]])
        {
            Tensor positions = tensor(bad, device: device).unsqueeze(0);
            if (device == "cpu")
            {
                Assert.That(() => MustafarOps.Rotate(heads, positions, angles), Throws.ArgumentException.With.Message.Contains("positions"));
            }
            else
            {
                Tensor query = MustafarOps.Rotate(heads, positions, angles).Query;
                Assert.That(Values.Of(query.isnan()[0, 0, TensorIndex.Colon, 0]), Is.EqualTo(bad.Select(p => p is >= 0 and < 5 ? 0f : 1f)));
            }
        }
    }

    [Test]
    public void Bad_arguments_are_named()
    {
        using var scope = NewDisposeScope();
        RotaryHeads heads = new(randn(2, 4, 3, 8, device: device), randn(2, 2, 3, 8, device: device));
        Tensor positions = zeros(2, 3, dtype: ScalarType.Int32, device: device), frequencies = ones(4, dtype: ScalarType.Float64, device: device);
        RotaryAngles angles = RotaryAngles.PerPosition(frequencies);
        Assert.Multiple(() =>
        {
            Assert.That(() => MustafarOps.Rotate(null!, positions, angles), Throws.ArgumentNullException);
            Assert.That(() => MustafarOps.Rotate(heads with { Key = randn(2, 3, 3, 8, device: device) }, positions, angles), Throws.ArgumentException.With.Message.Contains("divisor of 4"));
            Assert.That(() => MustafarOps.Rotate(heads with { Key = heads.Key[.., .., ..2] }, positions, angles), Throws.ArgumentException.With.Property("ParamName").EqualTo("Key"));
            Assert.That(() => MustafarOps.Rotate(heads, positions.to(ScalarType.Int64), angles), Throws.ArgumentException.With.Property("ParamName").EqualTo("positions"));
            Assert.That(() => MustafarOps.Rotate(heads, positions[.., ..2].contiguous(), angles), Throws.ArgumentException.With.Message.Contains("[2, 3]"));
            Assert.That(() => MustafarOps.Rotate(heads, positions.t(), angles), Throws.ArgumentException.With.Message.Contains("contiguous"));
            Assert.That(() => MustafarOps.Rotate(heads, positions, RotaryAngles.PerPosition(ones(5, dtype: ScalarType.Float64, device: device))),
                Throws.ArgumentException.With.Property("ParamName").EqualTo("angles"));
            Assert.That(() => MustafarOps.Rotate(heads, positions, angles, new HeadNorms(ones(7, device: device), null, 0)), Throws.ArgumentException.With.Property("ParamName").EqualTo("Query"));
            Assert.That(() => MustafarOps.Rotate(heads, positions, angles, output: heads with { Value = heads.Key }), Throws.ArgumentException.With.Property("ParamName").EqualTo("output"));
            Assert.That(() => RotaryAngles.PerPosition(frequencies.to(ScalarType.Float32)), Throws.ArgumentException.With.Message.Contains("Float32"));
            Assert.That(() => RotaryAngles.PerPosition(frequencies, 0), Throws.TypeOf<ArgumentOutOfRangeException>());
            Assert.That(() => RotaryAngles.FromTables(ones(3, 4), ones(4, 4)), Throws.ArgumentException.With.Property("ParamName").EqualTo("sines"));
            Assert.That(() => RotaryAngles.FromTables(ones(4), ones(4)), Throws.ArgumentException.With.Property("ParamName").EqualTo("cosines"));
        });
    }

    private void Case(ScalarType dtype, int batch, int tokens, int heads, int kvHeads, int headDim, int rotaryDim, bool tables, bool normed, bool inPlace)
    {
        using var scope = NewDisposeScope();
        manual_seed(headDim + tokens);
        string what = $"{dtype} [{batch}, {heads} {kvHeads}, {tokens}, {headDim}] {rotaryDim} tables {tables} norms {normed} in place {inPlace}";
        // Rows that lie three elements apart and begin as far from an aligned address.
        int width = (heads + (2 * kvHeads)) * headDim;
        Tensor product = randn(batch, tokens, width + 3).to(dtype).to(device)
            .narrow(2, 3, width).view(batch, tokens, -1, headDim).transpose(1, 2);
        RotaryHeads source = new(product.narrow(1, 0, heads), product.narrow(1, heads, kvHeads), product.narrow(1, heads + kvHeads, kvHeads));
        Tensor[] before = [.. ((Tensor[])[source.Query, source.Key, source.Value!]).Select(tensor => tensor.clone())];
        Tensor positions = randint(0, tables ? 300 : 1 << 20, [batch, tokens]).to(ScalarType.Int32).to(device);
        Tensor frequencies = pow(tensor(500_000.0), arange(rotaryDim / 2, dtype: ScalarType.Float64) * (-2.0 / rotaryDim)).to(device);
        Tensor angles = outer(arange(300, dtype: ScalarType.Float64, device: device), frequencies);
        const double Scaling = 1.25;
        RotaryAngles by = tables
            ? RotaryAngles.FromTables(angles.cos().to(ScalarType.Float32), angles.sin().to(ScalarType.Float32), Scaling)
            : RotaryAngles.PerPosition(frequencies, Scaling);
        HeadNorms? norms = normed ? new HeadNorms(randn(headDim).to(dtype).to(device), randn(headDim).to(dtype).to(device), 1e-6) : null;
        RotaryHeads result = MustafarOps.Rotate(source, positions, by, norms, inPlace ? source : null);
        Compare.Same(result.Value!, before[2].cpu(), $"{what}: values");
        Tensor turns = positions.to(ScalarType.Float64).unsqueeze(1).unsqueeze(-1) * frequencies;
        foreach ((Tensor x, Tensor turned, Tensor? weight) in ((Tensor, Tensor, Tensor?)[])[(before[0], result.Query, norms?.Query), (before[1], result.Key, norms?.Key)])
        {
            Tensor exact = weight is null ? ReferenceStep.Exact(x) : ReferenceStep.RmsNorm(x, weight, 1e-6);
            Tensor torchs = weight is null ? x : ReferenceStep.RmsNormInTorch(x, weight, 1e-6);
            ReferenceStep.AtMostTwiceTorchs(
                turned, ReferenceStep.Rotate(exact, positions, frequencies, Scaling),
                ReferenceStep.Turn(torchs, (turns.cos() * Scaling).to(dtype), (turns.sin() * Scaling).to(dtype)), what);
        }
    }
}
