using static TorchSharp.torch;

namespace Mustafar.Tests.Oracle;

[TestFixture]
internal sealed class CompareTests
{
    [Test]
    public void A_difference_beyond_the_tolerance_fails_and_names_the_place()
    {
        using Tensor expected = zeros(2, 3);
        using Tensor actual = expected.clone();
        actual[1, 2] = tensor(0.5f);
        Assert.That(() => Compare.Close(actual, expected, 0, 0.4, "x"), Throws.Exception.With.Message.Contains("[1, 2]"));
        Assert.That(() => Compare.Close(actual, expected, 0, 0.6, "x"), Throws.Nothing);
    }

    [TestCase(float.NaN)]
    [TestCase(float.PositiveInfinity)]
    public void A_special_value_matches_only_itself(float special)
    {
        using Tensor one = tensor(new[] { 1f, special });
        using Tensor two = tensor(new[] { 1f, 2f });
        Assert.That(() => Compare.Close(one, two, 10, 10, "x"), Throws.Exception);
        Assert.That(() => Compare.Close(two, one, 10, 10, "x"), Throws.Exception);
        Assert.That(() => Compare.Close(one, one, 0, 0, "x"), Throws.Nothing);
    }
}
