"""What autoencoder, VAE and GANomaly share."""
