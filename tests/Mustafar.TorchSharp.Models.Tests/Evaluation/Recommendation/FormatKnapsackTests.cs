using Mustafar.Models.Evaluation;

namespace Mustafar.Tests.Evaluation.Recommendation;

[TestFixture]
public sealed class FormatKnapsackTests
{
    // Against all combinations.
    [Test]
    public void PlansAreThoseOfASearchThroughAll([Range(0, 19)] int seed)
    {
        Random random = new(seed);
        int layers = random.Next(1, 5), count = random.Next(1, 6);
        int unit = random.Next(1, 20);
        FormatPair[] pairs = [.. Enumerable.Range(0, count).Select(i => new FormatPair(i, i, unit * random.Next(1, 12)))];
        double[,] losses = new double[layers, count];
        for (int layer = 0; layer < layers; layer++)
        {
            for (int i = 0; i < count; i++)
            {
                losses[layer, i] = random.Next(4) == 0 ? 0 : Math.Round(random.NextDouble(), 2);
            }
        }

        FormatKnapsack knapsack = new(pairs, layers, (layer, pair) => losses[layer, pair.Keys]);
        (long Bytes, double Loss, int[] Choice)[] all = [.. All()];
        using (Assert.EnterMultipleScope())
        {
            Assert.That(knapsack.FewestBytes, Is.EqualTo(all.Min(one => one.Bytes)));
            for (int i = 0; i < 30; i++)
            {
                double bytes = random.NextDouble() * layers * unit * 13;
                (long Bytes, double Loss, int[] Choice)[] within = [.. all.Where(one => one.Bytes <= bytes)];
                FormatPlan? plan = knapsack.Within(bytes);
                Assert.That(plan?.Loss, within.Length == 0 ? Is.Null : Is.EqualTo(within.Min(one => one.Loss)).Within(1e-12), $"{bytes} bytes");
                Check(plan, other => other.BlockBytes <= bytes);

                double loss = random.NextDouble() * layers;
                (long Bytes, double Loss, int[] Choice)[] losing = [.. all.Where(one => one.Loss <= loss + 1e-12)];
                plan = knapsack.Losing(loss + 1e-12);
                Assert.That(plan?.BlockBytes, losing.Length == 0 ? Is.Null : Is.EqualTo(losing.Min(one => one.Bytes)), $"a loss of {loss}");
                Check(plan, other => other.Loss <= loss + 1e-9);

                FormatPlan? uniform = knapsack.Uniform(other => other.BlockBytes <= bytes, other => (other.Loss, other.BlockBytes));
                (long Bytes, double Loss, int[] Choice)[] alike = [.. within.Where(one => one.Choice.Distinct().Count() == 1)];
                Assert.That(uniform?.Loss, alike.Length == 0 ? Is.Null : Is.EqualTo(alike.Min(one => one.Loss)).Within(1e-12), "uniform");
            }
        }

        IEnumerable<(long, double, int[])> All()
        {
            for (int number = 0; number < (int)Math.Pow(count, layers); number++)
            {
                int[] choice = new int[layers];
                for ((int layer, int rest) = (0, number); layer < layers; layer++, rest /= count)
                {
                    choice[layer] = rest % count;
                }

                yield return (choice.Sum(i => pairs[i].BlockBytes), choice.Select((i, layer) => losses[layer, i]).Sum(), choice);
            }
        }

        void Check(FormatPlan? plan, Func<FormatPlan, bool> isAllowed)
        {
            if (plan is not null)
            {
                Assert.That(plan.Layers, Has.Count.EqualTo(layers));
                Assert.That(plan.BlockBytes, Is.EqualTo(plan.Layers.Sum(pair => pair.BlockBytes)));
                Assert.That(plan.Loss, Is.EqualTo(plan.Layers.Select((pair, layer) => losses[layer, pair.Keys]).Sum()).Within(1e-12));
                Assert.That(isAllowed(plan));
            }
        }
    }
}
