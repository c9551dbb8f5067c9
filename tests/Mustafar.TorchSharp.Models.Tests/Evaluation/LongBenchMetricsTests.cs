using Mustafar.Models.Evaluation;

namespace Mustafar.Tests.Evaluation;

/// <summary>All values are computed by hand from the metrics' definitions.</summary>
[TestFixture]
public sealed class LongBenchMetricsTests
{
    // Predicted and expected words after normalisation stand behind each case.
    [TestCase("The cat sat.", "a cat sat", 1.0)] // cat sat | cat sat
    [TestCase("Paris, France", "Paris", 2.0 / 3)] // paris france | paris: 1/2 and 1
    [TestCase("to be or not to be", "to be", 0.5)] // 2 of 6, 2 of 2
    [TestCase("no no no", "no", 0.5)] // 1 of 3, 1 of 1
    [TestCase("It's the U.S.A.!", "its usa", 1.0)]
    [TestCase("theatre another", "the atre an other", 0.0)] // theatre another | atre other
    [TestCase("100%", "100", 1.0)]
    [TestCase("“Paris”", "Paris", 0.0)] // only ASCII punctuation is taken away
    [TestCase("", "Paris", 0.0)]
    [TestCase("the", "a", 0.0)]
    [TestCase("x", "", 0.0)]
    public void QaF1(string prediction, string answer, double expected) =>
        Assert.That(LongBenchMetrics.QaF1(prediction, answer), Is.EqualTo(expected).Within(1e-12));

    // Different words of the common subsequences over different words of each: the package's definition.
    [TestCase("the cat sat on the mat", "the cat sat on the mat", 1.0)]
    [TestCase("a b c d", "a c", 2 * (0.5 * 1.0) / 1.5)]
    [TestCase("c a", "a c", 0.5)] // one of two in order: 1/2 and 1/2
    [TestCase("w1 w2 w6 w7 w8. w1 w3 w8 w9 w5", "w1 w2 w3 w4 w5", 2 * (4.0 / 8 * (4.0 / 5)) / ((4.0 / 8) + (4.0 / 5)))] // union w1 w2 w3 w5
    [TestCase("a a a", "a", 1.0)]
    [TestCase("x y", "a b", 0.0)]
    [TestCase("", "a b", 0.0)]
    [TestCase("...", "a b", 0.0)]
    [TestCase("a\n b.  c", "a b. c.", 1.0)]
    [TestCase("A b", "a b", 0.5)] // letters' case counts
    public void RougeL(string prediction, string answer, double expected) =>
        Assert.That(LongBenchMetrics.RougeL(prediction, answer), Is.EqualTo(expected).Within(1e-7));

    [TestCase("Type: Date", "Date", 1.0, "Date", "City", "Country")]
    [TestCase("Date or City", "Date", 0.5, "Date", "City", "Country")]
    [TestCase("City", "Date", 0.0, "Date", "City", "Country")]
    [TestCase("nothing", "Date", 0.0, "Date", "City", "Country")]
    [TestCase("Other location", "Other location", 1.0, "location", "Other location", "City")] // the shorter name is part of the right one
    [TestCase("abc", "abc", 0.5, "a", "b", "abc")] // after a is taken out, b is passed over
    [TestCase("date", "Date", 0.0, "Date", "City")]
    public void Classification(string prediction, string answer, double expected, params string[] classes) =>
        Assert.That(LongBenchMetrics.Classification(prediction, answer, classes), Is.EqualTo(expected).Within(1e-12));

    [TestCase("Paragraph 12", "Paragraph 12", 1.0)]
    [TestCase("It is 12 of 30.", "Paragraph 12", 0.5)]
    [TestCase("paragraph 1", "Paragraph 12", 0.0)]
    [TestCase("none", "Paragraph 12", 0.0)]
    public void Retrieval(string prediction, string answer, double expected) =>
        Assert.That(LongBenchMetrics.Retrieval(prediction, answer), Is.EqualTo(expected));

    [Test]
    public void RetrievalNeedsAParagraph() =>
        Assert.That(() => LongBenchMetrics.Retrieval("Paragraph 1", "one"), Throws.InstanceOf<FormatException>().With.Message.Contains("'one'"));

    [TestCase("17", "17", 1.0)]
    [TestCase("There are 17 different of 30, so 17.", "17", 2.0 / 3)]
    [TestCase("017", "17", 0.0)]
    [TestCase("many", "17", 0.0)]
    public void Count(string prediction, string answer, double expected) =>
        Assert.That(LongBenchMetrics.Count(prediction, answer), Is.EqualTo(expected).Within(1e-12));

    [TestCase("return x", "return x", 1.0)]
    [TestCase("\n\nreturn x\nmore", "return x", 1.0)]
    [TestCase("```python\n# a comment\n// another\nreturn x", "return x", 1.0)]
    [TestCase("abcd", "abxd", 0.75)] // 3 in common: 6 / 8
    [TestCase("abc", "abcdefg", 0.6)] // 3 in common: 6 / 10
    [TestCase("ab", "abc", 0.8)] // 4 / 5
    [TestCase("abcdef", "a", 0.29)] // 2 / 7 = 28.57 %
    [TestCase("ax", "abbb", 0.33)] // 2 / 6 = 33.3 %
    [TestCase("aaaaaaa", "a", 0.25)] // 2 / 8
    [TestCase("", "abc", 0.0)]
    [TestCase("# only\n`marks`", "abc", 0.0)]
    [TestCase("😀b", "😁b", 0.5)] // the faces share half of their UTF-16
    public void CodeSimilarity(string prediction, string answer, double expected) =>
        Assert.That(LongBenchMetrics.CodeSimilarity(prediction, answer), Is.EqualTo(expected).Within(1e-12));
}
