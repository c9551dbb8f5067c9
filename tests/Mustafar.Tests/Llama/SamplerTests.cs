using Mustafar.Examples.Llama.Generation;

namespace Mustafar.Tests.Llama;

[TestFixture]
public sealed class SamplerTests
{
    [Test]
    public void TemperatureZeroTakesTheLikeliestAndTheLowestIdAmongEquals()
    {
        Sampler sampler = new(new SamplingOptions());
        using (Assert.EnterMultipleScope())
        {
            Assert.That(sampler.Next([1, 5, 3]), Is.EqualTo(1));
            Assert.That(sampler.Next([1, 5, 5]), Is.EqualTo(1));
            Assert.That(sampler.Next([float.NegativeInfinity, -4]), Is.EqualTo(1));
        }
    }

    [Test]
    public void ASeedDrawsTheSameTokens()
    {
        float[] logits = RandomLogits(new Random(1), 50);
        int[] Draw(int seed)
        {
            Sampler sampler = new(new SamplingOptions { Temperature = 1, Seed = seed });
            return [.. Enumerable.Range(0, 100).Select(_ => sampler.Next(logits))];
        }

        int[] first = Draw(3);
        using (Assert.EnterMultipleScope())
        {
            Assert.That(Draw(3), Is.EqualTo(first));
            Assert.That(Draw(4), Is.Not.EqualTo(first));
        }
    }

    // In the first case 5, 4, 3 become 3.5, 4, 3; then 3.5, 2.5, 3; 2.5, 2.5, 3; 2.5, 2.5, 1.5; 1.5, 2.5, 1.5.
    [TestCase(1, 0.5, new[] { 0, 1, 0, 2, 0, 1 })]
    [TestCase(0, 1.5, new[] { 0, 1, 0, 0, 0, 0 })]
    [TestCase(-1, -1, new[] { 0, 0, 0, 0, 0, 0 })]
    public void PenaltiesAreTakenFromTheScoresOfWhatWasChosen(double frequency, double presence, int[] expected)
    {
        float[] logits = [5, 4, 3];
        Sampler sampler = new(new SamplingOptions { FrequencyPenalty = frequency, PresencePenalty = presence });
        Assert.That(expected.Select(_ => sampler.Next(logits)), Is.EqualTo(expected));
        Assert.That(logits, Is.EqualTo(new[] { 5, 4, 3 }));
        Sampler drawing = new(new SamplingOptions { Temperature = 1, FrequencyPenalty = frequency, PresencePenalty = 1000 });
        Assert.That(Enumerable.Range(0, 3).Select(_ => drawing.Next(logits)), Is.Unique, "at a temperature too");
    }

    [Test]
    public void DrawsByProbability()
    {
        double[] probabilities = [0.1, 0.2, 0, 0.7];
        float[] logits = [.. probabilities.Select(p => (float)Math.Log(p))];
        Sampler sampler = new(new SamplingOptions { Temperature = 1, Seed = 11 });
        int[] counts = new int[4];
        const int Draws = 20_000;
        for (int i = 0; i < Draws; i++)
        {
            counts[sampler.Next(logits)]++;
        }

        // Four standard deviations of the largest.
        Assert.That(counts.Select(count => (double)count / Draws), Is.EqualTo(probabilities).Within(0.013));
        Assert.That(counts[2], Is.Zero);
    }

    [Test]
    public void TemperatureDividesTheScores()
    {
        float[] logits = [0, 2, 4];
        double Probability(double temperature) =>
            new Sampler(new SamplingOptions { Temperature = temperature }).Candidates(logits).Single(item => item.Id == 2).Probability;

        using (Assert.EnterMultipleScope())
        {
            Assert.That(Probability(2), Is.EqualTo(Math.Exp(2) / (1 + Math.E + Math.Exp(2))).Within(1e-12));
            Assert.That(Probability(1e-3), Is.EqualTo(1).Within(1e-12));
        }
    }

    [Test]
    public void TopKLeavesTheKLikeliest([Values(1, 2, 7, 40, 100)] int k)
    {
        Random random = new(k);
        for (int i = 0; i < 50; i++)
        {
            // Few different values make ties.
            float[] logits = [.. Enumerable.Range(0, 40).Select(_ => (float)random.Next(6))];
            int[] expected = [.. Enumerable.Range(0, 40).OrderByDescending(id => logits[id]).ThenBy(id => id).Take(k)];
            IEnumerable<int> ids = new Sampler(new SamplingOptions { Temperature = 0.8, TopK = k }).Candidates(logits).Select(item => item.Id);
            Assert.That(ids, k < 40 ? Is.EqualTo(expected) : Is.EquivalentTo(expected));
        }
    }

    [Test]
    public void TopPLeavesTheFewestThatReachTheMass([Values(0.01, 0.3, 0.5, 0.9, 0.999)] double p, [Values(0, 12)] int k)
    {
        Random random = new(17);
        for (int i = 0; i < 50; i++)
        {
            float[] logits = RandomLogits(random, 60);
            List<(int Id, double Probability)> all = new Sampler(new SamplingOptions { Temperature = 1.3, TopK = k }).Candidates(logits);
            List<(int Id, double Probability)> kept = new Sampler(new SamplingOptions { Temperature = 1.3, TopK = k, TopP = p }).Candidates(logits);
            double mass = kept.Sum(item => item.Probability) / all.Sum(item => item.Probability);
            double massWithoutLast = kept.SkipLast(1).Sum(item => item.Probability) / all.Sum(item => item.Probability);
            int[] likeliest = [.. all.OrderByDescending(item => item.Probability).Take(kept.Count).Select(item => item.Id)];
            using (Assert.EnterMultipleScope())
            {
                Assert.That(kept.Select(item => item.Id), Is.EqualTo(likeliest));
                Assert.That(mass, Is.GreaterThanOrEqualTo(p - 1e-12));
                Assert.That(massWithoutLast, Is.LessThan(p));
            }
        }
    }

    [Test]
    public void DrawsOnlyWhatTopKAndTopPLeave()
    {
        float[] logits = RandomLogits(new Random(2), 200);
        SamplingOptions options = new() { Temperature = 2, TopK = 20, TopP = 0.8, Seed = 5 };
        HashSet<int> allowed = [.. new Sampler(options).Candidates(logits).Select(item => item.Id)];
        Sampler sampler = new(options);
        HashSet<int> drawn = [.. Enumerable.Range(0, 3000).Select(_ => sampler.Next(logits))];
        Assert.That(drawn, Is.EquivalentTo(allowed));
    }

    [Test]
    public void RefusesScoresThatAreNotNumbers([Values(0, 0.7)] double temperature)
    {
        Sampler sampler = new(new SamplingOptions { Temperature = temperature });
        using (Assert.EnterMultipleScope())
        {
            Assert.That(() => sampler.Next([]), Throws.ArgumentException);
            Assert.That(() => sampler.Next([1, float.NaN, 2]), Throws.ArgumentException.With.Message.Contains("NaN"));
            Assert.That(() => sampler.Next([1, float.PositiveInfinity]), Throws.ArgumentException);
            Assert.That(() => sampler.Next([float.NegativeInfinity, float.NegativeInfinity]), Throws.ArgumentException);
        }
    }

    [Test]
    public void RefusesOptionsOutOfRange()
    {
        using (Assert.EnterMultipleScope())
        {
            Assert.That(() => new SamplingOptions { Temperature = -1 }, Throws.TypeOf<ArgumentOutOfRangeException>());
            Assert.That(() => new SamplingOptions { Temperature = double.NaN }, Throws.TypeOf<ArgumentOutOfRangeException>());
            Assert.That(() => new SamplingOptions { TopK = -1 }, Throws.TypeOf<ArgumentOutOfRangeException>());
            Assert.That(() => new SamplingOptions { TopP = 0 }, Throws.TypeOf<ArgumentOutOfRangeException>());
            Assert.That(() => new SamplingOptions { TopP = 1.1 }, Throws.TypeOf<ArgumentOutOfRangeException>());
            Assert.That(() => new SamplingOptions { FrequencyPenalty = double.NaN }, Throws.TypeOf<ArgumentOutOfRangeException>());
            Assert.That(() => new SamplingOptions { PresencePenalty = double.PositiveInfinity }, Throws.TypeOf<ArgumentOutOfRangeException>());
        }
    }

    private static float[] RandomLogits(Random random, int count) =>
        [.. Enumerable.Range(0, count).Select(_ => (float)((random.NextDouble() * 8) - 4))];
}
