namespace Mustafar.Examples.Llama.Commands;

/// <summary>A rectangle of a picture, in pixels; y goes downwards.</summary>
internal readonly record struct Box(double Left, double Top, double Width, double Height)
{
    public double Right => Left + Width;

    public double Bottom => Top + Height;

    /// <summary>From a point to the nearest one of the rectangle.</summary>
    public double DistanceTo((double X, double Y) point) => double.Hypot(
        Math.Max(0, Math.Max(Left - point.X, point.X - Right)), Math.Max(0, Math.Max(Top - point.Y, point.Y - Bottom)));

    /// <summary>The area that two have in common.</summary>
    public double Overlap(Box other) =>
        Math.Max(0, Math.Min(Right, other.Right) - Math.Max(Left, other.Left)) * Math.Max(0, Math.Min(Bottom, other.Bottom) - Math.Max(Top, other.Top));
}

/// <summary>Puts labels beside points so that they overlap neither each other nor points where there is room.</summary>
internal static class LabelPlacement
{
    private const int Directions = 16;
    private const double Marker = 12;

    // Distances from a point to its label that are tried, the nearest first.
    private static readonly double[] s_distances = [8, 16, 28, 44, 64, 90, 120];

    /// <summary>Finds a place for each label.</summary>
    /// <param name="points">The points.</param>
    /// <param name="sizes">Width and height of each point's label.</param>
    /// <param name="bounds">Where labels may be.</param>
    /// <returns>The labels' places.</returns>
    public static Box[] Place(IReadOnlyList<(double X, double Y)> points, IReadOnlyList<(double Width, double Height)> sizes, Box bounds)
    {
        Box[] taken = [.. points.Select(point => new Box(point.X - (Marker / 2), point.Y - (Marker / 2), Marker, Marker))];
        List<Box> labels = [];
        for (int i = 0; i < points.Count; i++)
        {
            (Box best, double least) = (default, double.PositiveInfinity);
            foreach (Box box in Candidates(points[i], sizes[i]))
            {
                double cost = (box.Width * box.Height) - box.Overlap(bounds) + taken.Sum(box.Overlap) + labels.Sum(box.Overlap);
                if (cost < least)
                {
                    (best, least) = (box, cost);
                }

                if (least <= 0)
                {
                    break;
                }
            }

            labels.Add(best);
        }

        return [.. labels];
    }

    // Around a point, at growing distances: to the right first.
    private static IEnumerable<Box> Candidates((double X, double Y) point, (double Width, double Height) size)
    {
        foreach (double distance in s_distances)
        {
            for (int i = 0; i < Directions; i++)
            {
                // Up and down in turn.
                double angle = (i % 2 == 0 ? -1 : 1) * ((i + 1) / 2) * 2 * Math.PI / Directions;
                (double x, double y) = (Math.Cos(angle), Math.Sin(angle));
                (double centreX, double centreY) = (point.X + (x * (distance + (size.Width / 2))), point.Y + (y * (distance + (size.Height / 2))));
                yield return new Box(centreX - (size.Width / 2), centreY - (size.Height / 2), size.Width, size.Height);
            }
        }
    }
}
